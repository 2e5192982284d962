"""Programs as generated Triton kernels: specifications, generators, and what runs them."""
