"""FEDn's own client, which this stand-in does not have."""

from ..._absent import absent_names

__getattr__ = absent_names(__name__, "ConnectToApiResult", "FednClient", "GrpcConnectionOptions")
