"""Running sessions: the shell around the reducer's domain that waits, stores and sends."""
