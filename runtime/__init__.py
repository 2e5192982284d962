"""Running, evaluating and timing an artifact."""
