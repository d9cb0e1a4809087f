"""What the reducer serves to the nodes below it."""
