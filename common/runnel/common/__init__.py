"""What all tiers share: errors, protocol values, settings, logs, lifetime, ids, blobs, tensors and aggregation.

Each subject is a module or package of its own that is imported where it is used, so that a light command stays light;
this package itself imports nothing.
"""

__all__: list[str] = []
