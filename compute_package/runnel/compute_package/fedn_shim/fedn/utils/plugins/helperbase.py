"""Where FEDn 0.5 to 0.7 had this class."""

from ..helpers.helperbase import HelperBase

__all__ = ["HelperBase"]
