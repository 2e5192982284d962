"""Lowering to ONNX and ONNX Runtime."""
