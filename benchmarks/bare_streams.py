"""Bidirectional streams of plain grpc.aio and nothing else: what each costs its server at least.

python -m benchmarks.bare_streams serve          # prints its port
python -m benchmarks.bare_streams attach PORT COUNT
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc

from benchmarks.descriptors import require_descriptors

_METHOD = "/limits.Limits/Attach"
_MOST = 10_000
_AT_ONCE = 32
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


class _Echo(grpc.GenericRpcHandler):
    """Answers the first message of a stream and keeps the stream."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._answer)

    async def _answer(self, messages: AsyncIterator[bytes], context: Any) -> None:
        async for message in messages:
            await context.write(message)


async def _end_of_input() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _serve() -> None:
    require_descriptors(_MOST)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await _end_of_input()
    await server.stop(None)


async def _attach(port: int, count: int) -> None:
    require_descriptors(count)
    turns = asyncio.Semaphore(_AT_ONCE)
    async with AsyncExitStack() as stack:

        async def attach() -> Any:
            async with turns:
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_OWN_CONNECTION)
                await stack.enter_async_context(channel)
                opened: Any = channel.stream_stream(_METHOD)
                call = opened()
                await call.write(b"hello")
                await call.read()
                return call

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(attach()) for _ in range(count)]
        print("attached", flush=True)
        await _end_of_input()
        for task in tasks:
            task.result().cancel()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(_serve())
    else:
        asyncio.run(_attach(int(sys.argv[2]), int(sys.argv[3])))
