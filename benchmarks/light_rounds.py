"""A network with light clients, rounds of sessions there, and the memory that reducer and combiner take for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.light_clients import light_clients
from benchmarks.local_network import LocalNetwork, local_network
from benchmarks.usage import forget_peak, peak_bytes, resident_bytes, total_cpu_seconds
from runnel.common.blobs import digest_payload
from runnel.common.tensors import write_npz
from runnel.compute_package import pack
from runnel.sdk import Session

TIMEOUT_S = 900.0


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


class LightNetwork:
    """A reducer, a combiner and light clients, all attached; made by :func:`light_network`.

    ``pids`` and ``folders``: of reducer and combiner, by role.
    """

    def __init__(self, network: LocalNetwork, seed: Path, archive: Path, clients: int) -> None:
        names = {"reducer": "reducer", "combiner": "combiner-1"}
        self.pids = {role: network.pids[name] for role, name in names.items()}
        self.folders = {role: network.work / name for role, name in names.items()}
        self._network = network
        self._seed = seed
        self._archive = archive
        self._clients = clients

    async def upload(self) -> tuple[str, str]:
        """Push the seed and the package; return model and digest."""
        model = (await self._network.ask(lambda http: http.models.push(self._seed))).model
        package = (await self._network.ask(lambda http: http.packages.push(self._archive))).digest
        return model, package

    async def train(self, model: str, package: str, *, rounds: int, **options: Any) -> Session:
        """Run a session of so many rounds with all clients; ``options``: further ones of it."""
        return await self._network.train(
            timeout_s=TIMEOUT_S,
            package=package,
            seed=model,
            rounds=rounds,
            min_clients=self._clients,
            validate_every=0,
            retries=0,
            **options,
        )


@asynccontextmanager
async def light_network(megabytes: int, clients: int) -> AsyncIterator[LightNetwork]:
    """Start a network anew, with ``clients`` that answer with a float32 model of so many 10^6 bytes."""
    async with local_network(combiners=1) as network:
        seed, update, archive = await asyncio.to_thread(_prepare, network.work, megabytes)
        ref = await asyncio.to_thread(digest_payload, update)
        async with light_clients(clients, network.rpc, update=update, ref=ref, folder=network.work):
            await network.until_attached(clients=clients)
            yield LightNetwork(network, seed, archive, clients)


async def light_rounds(megabytes: int, clients: int, rounds: int, **options: Any) -> LightRounds:
    """Start a network anew and train on it.

    Args:
        megabytes: of the float32 model, in 10^6 bytes.
        clients: how many, all in every round.
        rounds: how many.
        options: further ones of the session.
    """
    async with light_network(megabytes, clients) as network:
        pids = network.pids
        for pid in pids.values():
            forget_peak(pid)
        bases = {role: resident_bytes(pid) for role, pid in pids.items()}
        model, package = await network.upload()
        before = total_cpu_seconds(pids.values())
        session = await network.train(model, package, rounds=rounds, **options)
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
