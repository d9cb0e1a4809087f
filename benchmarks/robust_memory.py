"""Peak memory and disk of reducer and combiner, and seconds per round, with robust rules, by number of clients.

As ``memory.py``, for rules that need every update: the combiner forwards them in one file, the reducer reads them side
by side. Memory must stay flat in the number of clients; disk is that many models at each of the two, which is told.

    python -m benchmarks.robust_memory [--quick] [--json]
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.light_clients import light_clients
from benchmarks.local_network import local_network
from benchmarks.usage import MB, forget_peak, peak_bytes, resident_bytes
from runnel.common.blobs import digest_file
from runnel.common.tensors import write_npz
from runnel.compute_package import pack

TARGET_MODELS = 3.0
RULES: dict[str, dict[str, float]] = {"median": {}, "krum": {"f": 1}, "geometric_median": {}}


async def measure(quick: bool) -> Result:
    """Measure all rules and numbers of clients."""
    megabytes, counts, rounds = (1, (5,), 1) if quick else (20, (5, 20), 3)
    figures: list[Figure] = []
    for strategy, options in RULES.items():
        for clients in counts:
            figures += await _row(
                strategy, options, megabytes, clients, rounds, target=None if quick else TARGET_MODELS
            )
    return Result(
        benchmark="robust memory",
        parameters={"combiners": 1, "rounds": rounds, "clients_are": "light, in one process"},
        figures=figures,
        notes=(
            "A model is float32; base is the idle process.",
            "Combiner and reducer each hold every update on disk until the round is reduced.",
        ),
    )


async def _row(
    strategy: str, options: dict[str, float], megabytes: int, clients: int, rounds: int, *, target: float | None
) -> list[Figure]:
    async with local_network(combiners=1) as network:
        seed, update, archive = await asyncio.to_thread(_prepare, network.work, megabytes)
        ref = await asyncio.to_thread(digest_file, update)
        async with light_clients(clients, network.rpc, update=update, ref=ref, folder=network.work):
            await network.until_attached(clients=clients)
            pids = {"reducer": network.pids["reducer"], "combiner": network.pids["combiner-1"]}
            for pid in pids.values():
                forget_peak(pid)
            bases = {role: resident_bytes(pid) for role, pid in pids.items()}
            model = (await network.ask(lambda http: http.models.push(seed))).model
            package = (await network.ask(lambda http: http.packages.push(archive))).digest
            session = await network.train(
                timeout_s=900.0,
                package=package,
                seed=model,
                rounds=rounds,
                min_clients=clients,
                validate_every=0,
                retries=0,
                strategy=strategy,
                strategy_options=options,
            )
            name = f"{strategy}, {megabytes} MB, {clients} clients"
            figures = []
            for role, pid in pids.items():
                models = (peak_bytes(pid) - bases[role]) / (megabytes * MB)
                figures.append(figure(f"{name}: {role} peak above base", "models", [models], target=target))
            seconds = [each.seconds for each in session.rounds if each.seconds is not None]
            figures.append(figure(f"{name}: round", "s", seconds))
            return figures


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


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
