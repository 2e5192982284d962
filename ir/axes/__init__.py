"""The axes of a model: which indices of which tensors move together, and what may be done."""
