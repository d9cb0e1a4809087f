"""Fetching and pushing blobs, again and again until they are whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import structlog

from runnel.common.blobs import Relay, Source, SpoolFile, begins_anew, digest_payload, in_thread
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.errors import (
    Cancelled,
    CapacityExceeded,
    CorruptData,
    DeadlineExceeded,
    Unauthenticated,
    Unreachable,
)
from runnel.common.protocol import BlobRef
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport.attachment import Attachment
from runnel.transport.blob_calls import BlobCall
from runnel.transport.chunk_wire import BlobCalls, split_chunk, write_chunk
from runnel.transport.chunks import CHUNK_BYTES, QUEUED_BYTES, read_chunks, receive_into
from runnel.transport.identity import bearer_metadata
from runnel.transport.status import rpc_errors
from runnel.transport.wire_values import blob_from_wire, blob_to_wire

Delays = Callable[[], Iterator[float]]
"""Makes a fresh sequence of waits, as ``RetryPolicy.delays`` does."""

_TRANSIENT = (Unreachable, DeadlineExceeded, CapacityExceeded, Cancelled)
_USELESS_ATTEMPTS = 3
_USELESS_ABOVE = 9  # so often a blob is damaged on its way to the node above, which itself tries three times
_TURN_S = 60.0  # until what the peer lets in is sent unasked


async def fetch_blob(
    present: Callable[[], Awaitable[Attachment]], file: SpoolFile, delays: Delays, relay: Relay | None = None
) -> None:
    """Fetch what is missing of ``file`` over the present attachment and, when that is lost, over the next; verify it.

    Args:
        present: waits for an attachment and returns it.
        file: where the bytes go.
        delays: waits after attempts that failed; begun anew after each that brought something.
        relay: to those who read it meanwhile.

    Raises:
        CorruptData: it was wrong three times, or nine times at the node above before it came here.
        RunnelError: what trying again can't mend, such as ``NotFound``.
    """
    log = structlog.get_logger()
    waits = delays()
    corrupt = damaged_above = 0
    while True:
        attachment = await present()
        held = file.held
        try:
            await attachment.while_attached(
                fetch_once(
                    await attachment.calls(file.ref.size_bytes - file.held),
                    file,
                    credential=attachment.credential,
                    peer=attachment.peer,
                    relay=relay,
                )
            )
            await in_thread(file.finish)
        except CorruptData:
            corrupt += 1
            if corrupt == _USELESS_ATTEMPTS:
                raise
            _begin_anew(file, relay)
        except Unauthenticated as error:
            attachment.end("credential refused", error)  # the next one comes with a new credential
        except _TRANSIENT as error:
            log.info("fetch interrupted", via=attachment.peer, held_bytes=file.held, detail=str(error))
            if begins_anew(error):
                damaged_above += 1
                if damaged_above == _USELESS_ABOVE:
                    raise CorruptData(error.message, sha256=file.ref.sha256) from error
                _begin_anew(file, relay)
        else:
            return
        if file.held > held:
            waits = delays()
        await asyncio.sleep(next(waits))


def _begin_anew(file: SpoolFile, relay: Relay | None) -> None:
    file.drop()
    if relay is not None:
        relay.begin_anew()


async def push_blob(attachment: Attachment, order_id: str, source: Source, ref: BlobRef, delays: Delays) -> None:
    """Push ``source`` over ``attachment`` until the node above has verified all of it.

    Raises:
        CorruptData: ``source`` is not ``ref``, also from its start, or the node above does not get further.
        RunnelError: what trying again can't mend.
    """
    log = structlog.get_logger()
    waits = delays()
    # What fits one chunk is sent at once; for more it pays to ask first what is held or whether it is wanted at all.
    offset: int | None = None if ref.size_bytes > CHUNK_BYTES else 0
    useless, anew = 0, False
    while True:
        try:
            held, complete = await push_once(
                await attachment.calls(0 if offset is None else ref.size_bytes - offset),
                order_id,
                source,
                ref,
                offset=offset,
                credential=attachment.credential,
                peer=attachment.peer,
            )
        except CorruptData:
            if offset == 0 or anew:
                raise
            # What the node above had may have been of another payload, and it has dropped it.
            offset, anew = None, True
            continue
        except Unauthenticated as error:
            attachment.end("credential refused", error)  # it is offered again over the next, with a new credential
            raise
        except _TRANSIENT as error:
            log.info("push interrupted", via=attachment.peer, order_id=order_id, detail=str(error))
            offset = None
            await asyncio.sleep(next(waits))
            continue
        if complete:
            return
        useless = useless + 1 if held == offset else 0
        if useless == _USELESS_ATTEMPTS or held > ref.size_bytes:
            raise CorruptData(f"{attachment.peer} does not take the payload beyond byte {held:,}.", order_id=order_id)
        offset = held


async def push_named(
    attachment: Attachment, order_id: str, source: Source, ref: BlobRef | None, delays: Delays, *, first: bool
) -> BlobRef:
    """Push ``source`` as :func:`push_blob` does and return its name; if that is None, find it.

    It is found while it is pushed, and follows it. It is found before if it is wanted ``first``, or the node above does
    not take it at the end. What breaks goes on with it.
    """
    if ref is not None:
        await push_blob(attachment, order_id, source, ref, delays)
        return ref
    naming = asyncio.ensure_future(in_thread(digest_payload, source))
    try:
        size_bytes = source.nbytes if isinstance(source, memoryview) else source.stat().st_size
        takes_late = attachment.welcome is not None and attachment.welcome.late_digests
        if takes_late and not first and size_bytes > CHUNK_BYTES:
            try:
                _, complete = await push_once(
                    await attachment.calls(size_bytes),
                    order_id,
                    source,
                    BlobRef(size_bytes=size_bytes),
                    offset=0,
                    credential=attachment.credential,
                    peer=attachment.peer,
                    naming=asyncio.shield(naming),
                )
            except Unauthenticated as error:
                attachment.end("credential refused", error)  # as in push_blob
                raise
            except _TRANSIENT as error:
                complete = False
                structlog.get_logger().info(
                    "push interrupted", via=attachment.peer, order_id=order_id, detail=str(error)
                )
            if complete:
                return await naming
        ref = await asyncio.shield(naming)
        await push_blob(attachment, order_id, source, ref, delays)
        return ref
    finally:
        await asyncio.wait((naming,))  # it reads what the caller may use again
        naming.exception()  # seen: what else was raised says more
        del naming  # as in Attachment.while_attached


async def ask_push(attachment: Attachment, order_id: str, ref: BlobRef) -> bool:
    """Ask the node above whether it takes a payload; return whether it has verified all of it already.

    Raises:
        RunnelError: why it does not, or ``Unreachable`` if it is gone.
    """
    _, complete = await push_once(
        attachment.blobs,
        order_id,
        memoryview(b""),
        ref,
        offset=None,
        credential=attachment.credential,
        peer=attachment.peer,
    )
    return complete


async def fetch_once(
    calls: BlobCalls | BlobCall, file: SpoolFile, *, credential: str, peer: str, relay: Relay | None = None
) -> None:
    """Fetch what is missing of ``file``. Whatever happens, what came stays in it and it can be continued.

    Raises:
        Unreachable: the stream ended early, or the peer is gone.
        CorruptData: the peer answers something else than what was asked for.
        RunnelError: what the peer said, or ``StorageFull`` here.
    """
    request = pb.FetchRequest(blob=blob_to_wire(file.ref), offset=file.held)
    call = calls.fetch(request, metadata=bearer_metadata(credential))

    async def fetched() -> AsyncGenerator[memoryview, None]:
        first = True
        async for message in call:
            header, data = split_chunk(message)
            del message  # the data hold it, and are held no longer than they are used
            if not first:
                if 2 * file.held >= file.ref.size_bytes:
                    reach(CrashPoint.BLOB_HALF_FETCHED)
            elif header is None or (blob_from_wire(header.blob), header.offset) != (file.ref, request.offset):
                raise CorruptData(f"{peer} answers another blob or offset than was asked for.", peer=peer)
            first = False
            yield data
            del data

    try:
        with rpc_errors(peer):
            await receive_into(file, fetched(), relay)
    finally:
        call.cancel()
    if file.held < file.ref.size_bytes:
        raise Unreachable(f"{peer} ended the blob at {file.held:,} of {file.ref.size_bytes:,} bytes.", peer=peer)


async def push_once(
    calls: BlobCalls | BlobCall,
    order_id: str,
    source: Source,
    ref: BlobRef,
    *,
    offset: int | None,
    credential: str,
    peer: str,
    naming: Awaitable[BlobRef] | None = None,
) -> tuple[int, bool]:
    """Push ``source`` from ``offset`` on, or with None only ask how much the peer holds.

    With ``naming`` the digest of ``ref`` is empty, and what that gives is said at the end.

    Returns:
        How many bytes the peer holds from the start of the blob, and whether it has verified all of them. The peer may
        answer early, when it does not hold exactly ``offset`` bytes.

    Raises:
        CorruptData: ``source`` is not ``ref``; found here by its length or there by its digest.
        RunnelError: what the peer said; ``Unreachable`` if it is gone.
    """
    header = pb.Chunk(blob=blob_to_wire(ref), order_id=order_id, offset=offset or 0).SerializeToString()
    call = calls.push(metadata=bearer_metadata(credential))
    try:
        with rpc_errors(peer):
            with suppress(asyncio.InvalidStateError):  # it has answered already: the answer tells
                if offset is None or offset == ref.size_bytes:
                    await call.write(header)
                else:
                    first = CHUNK_BYTES if ref.size_bytes - offset <= CHUNK_BYTES else QUEUED_BYTES
                    chunks, sent = read_chunks(source, offset, ref.size_bytes, first_bytes=first), offset
                    try:
                        async for data in chunks:
                            sent += len(data)
                            writing = write_chunk(call, data, header)
                            del data  # as there
                            await writing
                            del writing
                            if 2 * sent >= ref.size_bytes:
                                reach(CrashPoint.PAYLOAD_HALF_PUSHED)
                            if header and first == QUEUED_BYTES:
                                await _its_turn(call)
                            header = b""
                    finally:
                        await chunks.aclose()
                    if naming is not None:
                        await call.write(pb.Chunk(blob=blob_to_wire(await naming)).SerializeToString())
                await call.done_writing()
            receipt = await call
    finally:
        call.cancel()
    return receipt.held_bytes, receipt.complete


async def _its_turn(call: Any) -> None:
    """Wait until the peer takes the rest: then it sends its metadata, or has answered; a minute if it does neither."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_TURN_S):
            await call.initial_metadata()
