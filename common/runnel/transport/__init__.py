"""How nodes talk: connections, credentials, chunk streams, the Uplink and the Directory."""

from runnel.transport.addresses import Address, is_loopback, parse_address
from runnel.transport.blob_server import BlobServer
from runnel.transport.channels import open_channel
from runnel.transport.child import Child
from runnel.transport.directory import DirectoryHandler, DirectoryServer, JoinAsk, Place, join
from runnel.transport.identity import NodeIdentity, bearer, bearer_metadata
from runnel.transport.link_events import Attached, Detached, LinkEvent, Received
from runnel.transport.mailbox import Mailbox
from runnel.transport.retry import RetryPolicy
from runnel.transport.server import RpcServer
from runnel.transport.status import STATUS, problem_of, rpc_errors, status_of
from runnel.transport.tls import ClientTls, ServerTls
from runnel.transport.transfer_queue import SMALL_BYTES, TransferQueue
from runnel.transport.uplink_link import UplinkLink
from runnel.transport.uplink_server import UplinkHandler, UplinkServer

__all__ = [
    "SMALL_BYTES",
    "STATUS",
    "Address",
    "Attached",
    "BlobServer",
    "Child",
    "ClientTls",
    "Detached",
    "DirectoryHandler",
    "DirectoryServer",
    "JoinAsk",
    "LinkEvent",
    "Mailbox",
    "NodeIdentity",
    "Place",
    "Received",
    "RetryPolicy",
    "RpcServer",
    "ServerTls",
    "TransferQueue",
    "UplinkHandler",
    "UplinkLink",
    "UplinkServer",
    "bearer",
    "bearer_metadata",
    "is_loopback",
    "join",
    "open_channel",
    "parse_address",
    "problem_of",
    "rpc_errors",
    "status_of",
]
