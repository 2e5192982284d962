"""The program: a functional graph with the checkpoint's tensors, and what only reads it."""
