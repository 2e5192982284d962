"""What each operator reads: one table for ATen, one for ONNX, in one vocabulary."""
