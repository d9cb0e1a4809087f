"""How large a pushed payload may be, as far as it shows from the global model alone."""

from __future__ import annotations

from runnel.common.errors import TooLarge
from runnel.common.protocol import BlobRef, Gather, NodeKind


def require_fitting_payload(
    payload: BlobRef, *, source: str, kind: NodeKind, gather: Gather, model: BlobRef, clients: int, overhead_bytes: int
) -> None:
    """Require that a payload is not larger than an honest one could be.

    Args:
        payload: what is announced.
        source: name of the node that wants to push.
        kind: of that node: a client pushes one update, a combiner what ``gather`` says.
        gather: of the order.
        model: the global model.
        clients: how many of the order's clients the node has not answered for.
        overhead_bytes: by how much an update may be larger than the global model.

    Raises:
        TooLarge: it is larger; the message tells the limit.
    """
    if kind is NodeKind.CLIENT:
        limit = model.size_bytes + overhead_bytes
    elif gather is Gather.UPDATES:
        limit = clients * (model.size_bytes + overhead_bytes)
    else:
        # A sum has 8 bytes for each parameter, and a parameter at least one byte in the model.
        limit = 8 * model.size_bytes + overhead_bytes
    if payload.size_bytes > limit:
        raise TooLarge(
            f"{source} wants to push {payload.size_bytes:,} bytes; the global model has {model.size_bytes:,}, so"
            f" at most {limit:,} are taken.",
            node=source,
        )
