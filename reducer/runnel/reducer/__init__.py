"""The reducer: the control plane of a network."""
