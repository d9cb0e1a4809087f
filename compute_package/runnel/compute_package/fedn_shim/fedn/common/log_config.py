"""``logger``, which packages write their progress to."""

import logging
import sys

logger = logging.getLogger("fedn")
if not logger.handlers:
    # Packages expect that what they log is seen without setting anything up.
    _handler = logging.StreamHandler(sys.stdout)
    _handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    logger.addHandler(_handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
