"""What the reducer decides, free of input and output."""
