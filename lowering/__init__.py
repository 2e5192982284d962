"""From a `Program` to an artifact that a runtime can load."""
