"""Where FEDn 0.5 to 0.7 had this helper."""

from ..helpers.plugins.androidhelper import Helper

__all__ = ["Helper"]
