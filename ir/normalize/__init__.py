"""Recovers composite operators from what the exporter decomposed."""
