"""``APIClient``, which this stand-in does not have."""

from ..._absent import absent_names

__getattr__ = absent_names(__name__, "APIClient")
