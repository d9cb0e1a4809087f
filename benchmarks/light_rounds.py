"""Rounds of a session with light clients, and the memory that reducer and combiner take for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.light_clients import light_clients
from benchmarks.local_network import local_network
from benchmarks.usage import forget_peak, peak_bytes, resident_bytes, total_cpu_seconds
from runnel.common.blobs import digest_payload
from runnel.common.tensors import write_npz
from runnel.compute_package import pack


@dataclass(frozen=True, slots=True, kw_only=True)
class LightRounds:
    """What was measured.

    Args:
        bases: resident bytes by role when all clients were attached, before the seed was uploaded.
        peaks: bytes above base by role.
        rounds_s: seconds of each round.
        cpu_s: processor time of reducer and combiner for a round, in seconds.
    """

    bases: dict[str, int]
    peaks: dict[str, int]
    rounds_s: list[float]
    cpu_s: float


async def light_rounds(megabytes: int, clients: int, rounds: int, **options: Any) -> LightRounds:
    """Start a network anew and train on it.

    Args:
        megabytes: of the float32 model, in 10^6 bytes.
        clients: how many, all in every round.
        rounds: how many.
        options: further ones of the session.
    """
    async with local_network(combiners=1) as network:
        seed, update, archive = await asyncio.to_thread(_prepare, network.work, megabytes)
        ref = await asyncio.to_thread(digest_payload, update)
        async with light_clients(clients, network.rpc, update=update, ref=ref, folder=network.work):
            await network.until_attached(clients=clients)
            pids = {"reducer": network.pids["reducer"], "combiner": network.pids["combiner-1"]}
            for pid in pids.values():
                forget_peak(pid)
            bases = {role: resident_bytes(pid) for role, pid in pids.items()}
            model = (await network.ask(lambda http: http.models.push(seed))).model
            package = (await network.ask(lambda http: http.packages.push(archive))).digest
            before = total_cpu_seconds(pids.values())
            session = await network.train(
                timeout_s=900.0,
                package=package,
                seed=model,
                rounds=rounds,
                min_clients=clients,
                validate_every=0,
                retries=0,
                **options,
            )
            return LightRounds(
                bases=bases,
                peaks={role: peak_bytes(pid) - bases[role] for role, pid in pids.items()},
                rounds_s=[each.seconds for each in session.rounds if each.seconds is not None],
                cpu_s=(total_cpu_seconds(pids.values()) - before) / rounds,
            )


def _prepare(folder: Path, megabytes: int) -> tuple[Path, Path, Path]:
    """Write the seed, the update of all clients, and a package that nobody runs."""
    params = megabytes * 1_000_000 // 4
    seed, update, source = folder / "seed.npz", folder / "update.npz", folder / "package"
    write_npz(seed, {"w": np.zeros(params, np.float32)})
    write_npz(update, {"w": np.random.default_rng(0).standard_normal(params, np.float32)})
    source.mkdir()
    for name in ("train.py", "validate.py"):
        (source / name).write_text("raise SystemExit('light clients run nothing')\n")
    return seed, update, pack(source, folder / "package.tar.gz").path
