"""Reports of a conversion, and their pictures."""
