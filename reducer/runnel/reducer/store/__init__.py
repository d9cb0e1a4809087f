"""The reducer's durable state."""
