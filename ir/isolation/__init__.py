"""Whether requests in a batch stay apart: the proof, or the path by which they do not."""
