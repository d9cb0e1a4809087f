"""Reading and writing models, metadata and metrics; of FEDn 0.5 to 0.7 this was a module with these names."""

from .helperbase import HelperBase
from .helpers import get_helper, load_metadata, save_metadata, save_metrics

__all__ = ["HelperBase", "get_helper", "load_metadata", "save_metadata", "save_metrics"]
