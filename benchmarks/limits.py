"""What this machine can do at best: bytes through plain grpc.aio between two processes, and numpy's folding."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np

CHUNK_BYTES = 512 << 10
METHOD = "/limits.Limits/Take"


class _Taker(grpc.GenericRpcHandler):
    """Counts the bytes of a stream, drops them and answers; no protobuf, no disk, no digest."""

    def __init__(self, answer: Callable[[int], bytes]) -> None:
        self._answer = answer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_unary_rpc_method_handler(self._take)

    async def _take(self, chunks: AsyncIterator[bytes], context: object) -> bytes:
        total = 0
        async for chunk in chunks:
            total += len(chunk)
        return self._answer(total)


async def serve_taker(answer: Callable[[int], bytes] = lambda total: str(total).encode()) -> None:
    """Take streams at a port that is printed, until standard input ends; ``answer``: to the number of their bytes."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Taker(answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await until_end_of_input(port)
    await server.stop(None)


async def until_end_of_input(port: int) -> None:
    """Tell whoever started this process the port, and wait until it says no more."""
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def transfer_seconds(size_bytes: int, runs: int) -> list[float]:
    """Return how long plain grpc.aio takes to stream ``size_bytes`` to another process on the loopback, each time."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.limits", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdin is not None
    try:
        port = int(await server.stdout.readline())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            take: Any = channel.stream_unary(METHOD)
            await take(chunks(CHUNK_BYTES))
            return [await _once(take, size_bytes) for _ in range(runs)]
    finally:
        server.stdin.close()
        await server.wait()


async def _once(take: Any, size_bytes: int) -> float:
    began = time.perf_counter()
    taken = int(await take(chunks(size_bytes)))
    if taken != size_bytes:
        raise RuntimeError(f"{taken} of {size_bytes} bytes arrived")
    return time.perf_counter() - began


async def chunks(size_bytes: int) -> AsyncIterator[bytes]:
    """Yield so many bytes, :data:`CHUNK_BYTES` at a time."""
    chunk = bytes(CHUNK_BYTES)
    for at in range(0, size_bytes, CHUNK_BYTES):
        yield chunk[: min(CHUNK_BYTES, size_bytes - at)]


def transfers_of_round(clients: int) -> int:
    """Return how many models cross a network of one combiner: down to it and to each client, each update, the sum.

    The sum is float64, as long as two models.

    >>> transfers_of_round(4)
    11
    """
    return 1 + 2 * clients + 2


def fold_seconds(size_bytes: int, runs: int) -> list[float]:
    """Return how long numpy takes for ``acc += w * x`` with ``x`` float32 of ``size_bytes`` in memory, each time."""
    x = np.ones(size_bytes // 4, np.float32)
    total, product = np.zeros(x.size), np.empty(x.size)
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        np.multiply(x, 3.7, out=product, dtype=np.float64)
        np.add(total, product, out=total)
        times.append(time.perf_counter() - began)
    return times[1:]  # the first one maps the memory


if __name__ == "__main__":
    asyncio.run(serve_taker())
