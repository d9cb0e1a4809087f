"""Where the processor time of a transfer goes: plain grpc.aio beside the connections of the blob port.

The same bytes, in chunks of 512 KiB, from one process to another on the loopback, by either in turn; no protobuf, no
disk, no digest. Each process counts its processor time itself: that of the thread of its event loop, the only one that
runs code in Python, apart from that of other threads, which are gRPC's, and how much of both is the kernel's.
``--profile`` lists the functions on which the event loop's thread spends it instead (by cProfile, which slows it down).

    python -m benchmarks.transfer_profile [--quick] [--json] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc

from benchmarks.figures import Figure, Result, figure, parser_of, tell
from benchmarks.limits import CHUNK_BYTES, METHOD, chunks, serve_taker, until_end_of_input
from benchmarks.usage import MB
from runnel.transport.blob_connection import BlobConnection, Frame

GRPC, BLOB_PORT = WAYS = ("grpc.aio", "blob port")
TRANSFER_MB = 100

_MOST_FUNCTIONS = 6

T = TypeVar("T")
Used = Mapping[str, float]
"""Processor seconds of one process: ``all``, of these in the ``kernel``, and those of the ``loop``'s thread."""


async def measure(quick: bool) -> Result:
    """Measure transfers by either way in turn."""
    megabytes, runs, turns = (4, 2, 1) if quick else (TRANSFER_MB, 5, 3)
    found: dict[str, list[dict[str, Used]]] = {way: [] for way in WAYS}
    for _ in range(turns):
        for way in WAYS:
            found[way] += (await transfers(way, megabytes, runs))["runs"]
    per_transfer = TRANSFER_MB / megabytes
    return Result(
        benchmark="transfer_profile",
        parameters={"chunks": "512 KiB", "transfer": f"{TRANSFER_MB} MB"},
        figures=[each for way in WAYS for each in _figures(way, found[way], per_transfer)],
        notes=("Processor time of one transfer. Other threads than the event loop's are gRPC's; they run no Python.",),
    )


def _figures(way: str, runs: list[dict[str, Used]], per_transfer: float) -> list[Figure]:
    both = [sum(used["all"] for used in run.values()) for run in runs]
    figures = [figure(f"{way}: both sides", "s", [each * per_transfer for each in both])]
    for side in ("sender", "receiver"):
        for what, of in _PARTS.items():
            values = [max(0.0, of(run[side])) * per_transfer for run in runs]
            figures.append(figure(f"{way}: {side}, {what}", "s", values))
    return figures


_PARTS: Mapping[str, Callable[[Used], float]] = {
    "event loop": lambda used: used["loop"],
    "other threads": lambda used: used["all"] - used["loop"],
    "in the kernel, of both": lambda used: used["kernel"],
}


async def transfers(way: str, megabytes: int, runs: int, *, profile: bool = False) -> dict[str, Any]:
    """Move so many megabytes ``runs`` times between two new processes; return what each used for each, by side.

    Args:
        way: one of :data:`WAYS`.
        megabytes: of a transfer.
        runs: how many, after a small one.
        profile: also return the functions of both event loops, as text.
    """
    program = [sys.executable, "-m", "benchmarks.transfer_profile", "--way", way, *(["--profile"] if profile else [])]
    receiver = await asyncio.create_subprocess_exec(
        *program, "--receive", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert receiver.stdout is not None
    try:
        port = int(await receiver.stdout.readline())
        send = ["--send", str(port), str(megabytes), str(runs)]
        sender = await asyncio.create_subprocess_exec(*program, *send, stdout=asyncio.subprocess.PIPE)
        told, _ = await sender.communicate()
        if sender.returncode:
            raise RuntimeError(f"the sender over {way} ended with {sender.returncode}")
    finally:
        listed, _ = await receiver.communicate(b"")  # the end of its input
    found: dict[str, Any] = json.loads(told)
    if profile:
        found["functions"]["receiver"] = json.loads(listed)
    return found


# ---- the two processes


def used_so_far() -> Used:
    """Return what this process has used; called in the thread of its event loop."""
    whole = resource.getrusage(resource.RUSAGE_SELF)
    return {"all": whole.ru_utime + whole.ru_stime, "kernel": whole.ru_stime, "loop": time.thread_time()}


def _since(before: Used, after: Used) -> Used:
    return {what: after[what] - before[what] for what in after}


def _answer(taken_bytes: int) -> bytes:
    return json.dumps({"taken_bytes": taken_bytes, "used": used_so_far()}).encode()


async def _receive(way: str) -> None:
    if way == GRPC:
        await serve_taker(_answer)
        return
    async with asyncio.TaskGroup() as group:

        def take(connection: BlobConnection) -> None:
            group.create_task(_take_frames(connection))

        def accepted() -> BlobConnection:
            return BlobConnection("the sender", most_bytes=CHUNK_BYTES, greeted=True, on_made=take)

        listening = await asyncio.get_running_loop().create_server(accepted, "127.0.0.1", 0)
        await until_end_of_input(listening.sockets[0].getsockname()[1])
        listening.close()


async def _take_frames(connection: BlobConnection) -> None:
    taken = 0
    while (frame := await connection.read())[0] is Frame.MESSAGE:
        taken += len(frame[1])
    await connection.write(Frame.STATUS, _answer(taken))


async def _send(way: str, port: int, size_bytes: int, runs: int) -> list[dict[str, Used]]:
    if way == BLOB_PORT:
        return await _counted(lambda size: _by_frames(port, size), size_bytes, runs)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        take: Any = channel.stream_unary(METHOD)
        return await _counted(lambda size: take(chunks(size)), size_bytes, runs)


async def _by_frames(port: int, size_bytes: int) -> bytes:
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: BlobConnection("the receiver", most_bytes=CHUNK_BYTES), "127.0.0.1", port
    )
    try:
        connection.greet()
        async for chunk in chunks(size_bytes):
            await connection.write(Frame.MESSAGE, chunk)
        await connection.write(Frame.END)
        _, answer = await connection.read()
        return bytes(answer)
    finally:
        connection.abort()


async def _counted(send: Callable[[int], Awaitable[bytes]], size_bytes: int, runs: int) -> list[dict[str, Used]]:
    """Send so many bytes ``runs`` times, after a chunk; return what each transfer took of both processes."""
    receiver = json.loads(await send(CHUNK_BYTES))["used"]
    found = []
    for _ in range(runs):
        sender = used_so_far()
        answer = json.loads(await send(size_bytes))
        if answer["taken_bytes"] != size_bytes:
            raise RuntimeError(f"{answer['taken_bytes']} of {size_bytes} bytes arrived")
        found.append({"sender": _since(sender, used_so_far()), "receiver": _since(receiver, answer["used"])})
        receiver = answer["used"]
    return found


# ---- the functions


def _profiled(main: Coroutine[Any, Any, T], wanted: bool) -> tuple[T, list[tuple[str, float]]]:
    """Run ``main`` in an event loop; return also its functions and their own processor seconds, the longest first."""
    if not wanted:
        return asyncio.run(main), []
    profile = cProfile.Profile(time.thread_time)
    returned = profile.runcall(asyncio.run, main)
    own: dict[str, float] = {}
    for (file, _, name), (_, _, seconds, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        where = name if file == "~" else f"{Path(file).stem}.{name}"
        own[where] = own.get(where, 0.0) + seconds
    return returned, sorted(own.items(), key=lambda item: -item[1])[:_MOST_FUNCTIONS]


async def _show_functions() -> None:
    runs = 10
    for way in WAYS:
        found = await transfers(way, TRANSFER_MB, runs, profile=True)
        for side, functions in found["functions"].items():
            of_loop = sum(run[side]["loop"] for run in found["runs"]) / runs
            others = max(0.0, sum(run[side]["all"] for run in found["runs"]) / runs - of_loop)
            print(f"{way}, {side}: event loop {1e3 * of_loop:.0f} ms, other threads {1e3 * others:.0f} ms; of the loop")
            for name, seconds in functions:
                print(f"  {1e3 * seconds / runs:6.1f} ms  {name}")


def _main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--profile", action="store_true", help="list the functions of the event loop instead")
    # Of the processes that it starts.
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.receive:
        _, functions = _profiled(_receive(arguments.way), arguments.profile)
        print(json.dumps(functions))
    elif arguments.send:
        port, megabytes, runs = map(int, arguments.send)
        found, functions = _profiled(_send(arguments.way, port, int(megabytes * MB), runs), arguments.profile)
        print(json.dumps({"runs": found, "functions": {"sender": functions}}))
    elif arguments.profile:
        asyncio.run(_show_functions())
    else:
        tell(asyncio.run(measure(arguments.quick)), as_json=arguments.json)


if __name__ == "__main__":
    _main()
