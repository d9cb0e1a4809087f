"""Server functions."""
