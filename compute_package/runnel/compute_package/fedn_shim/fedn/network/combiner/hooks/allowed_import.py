"""The names that server functions may use."""

import random
from typing import Dict, List, Tuple

import numpy as np

from ...._absent import absent_names
from ....common.log_config import logger
from .serverfunctionsbase import ServerFunctionsBase

print = logger.info  # noqa: A001 (as FEDn has it)

__all__ = ["Dict", "List", "ServerFunctionsBase", "Tuple", "logger", "np", "print", "random"]

__getattr__ = absent_names(__name__, "APIClient", "api_client")
