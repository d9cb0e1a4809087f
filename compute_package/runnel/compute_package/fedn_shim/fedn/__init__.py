"""A light stand-in for FEDn: what compute packages import of it, and nothing of its servers.

It is installed into the environments of packages whose requirements name ``fedn``, and is never on the import path of
a Runnel process. It runs on any Python from 3.8 on, whatever Runnel itself needs, and imports only numpy.
"""

from ._absent import absent_names

__version__ = "0.33.0"

__getattr__ = absent_names(__name__, "APIClient", "FednClient")
