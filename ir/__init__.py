"""The program: a functional graph with the checkpoint's tensors, and the analyses that only read it."""
