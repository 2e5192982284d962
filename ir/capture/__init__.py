"""From an `nn.Module`, a checkpoint folder or a GGUF file to a `Program`."""
