"""What compressed updates cost and save: bytes, seconds, and the accuracy of MNIST's 2NN after some rounds.

For each compression: encoding and decoding a model of 100 MB in one process, files in the page cache; the bytes of a
real update of the 2NN of McMahan et al. 2017; and its accuracy on MNIST's 10,000 test images after ten rounds of four
clients with 6,000 images each (E=1, B=10), from the same seed, through a combiner, as real processes. MNIST's files are
taken from the folder RUNNEL_TEST_MNIST, or ../shared/data/mnist; without them there is no accuracy, and the update is
one of random numbers.

    python -m benchmarks.compression [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.local_network import LocalNetwork, local_network
from benchmarks.mnist import EXAMPLE, IMAGES, mnist_folder, run_script
from runnel.common.compression import decode_update, encode_update, parse_compression
from runnel.common.tensors import normalise, write_npz
from runnel.compute_package import pack

COMPRESSIONS = (
    *("none", "zstd", "fp16", "bf16", "int8", "int8+zstd"),
    *("top-k:0.1+zstd", "top-k:0.01", "top-k:0.01+zstd", "top-k:0.001+zstd"),
)
QUICK_COMPRESSIONS = ("none", "int8+zstd", "top-k:0.01")
SETTINGS = {"epochs": 1, "batch_size": 10, "lr": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    megabytes: int
    runs: int
    clients: int
    sites: int
    rounds: int
    compressions: Sequence[str]


FULL = Size(megabytes=100, runs=5, clients=4, sites=10, rounds=10, compressions=COMPRESSIONS)
QUICK = Size(megabytes=4, runs=1, clients=2, sites=100, rounds=2, compressions=QUICK_COMPRESSIONS)


async def measure(quick: bool) -> Result:
    """Measure speed, size and, where MNIST is, accuracy."""
    size = QUICK if quick else FULL
    mnist = mnist_folder()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="runnel-bench-") as folder:
        work = Path(folder)
        if mnist is not None:
            await asyncio.to_thread(
                run_script, "split.py", "--data", mnist, "--clients", size.sites, "--out", work / "sites"
            )
        for how in size.compressions:
            if how != "none":
                figures += await asyncio.to_thread(_speed, work, how, size)
        figures += await asyncio.to_thread(_bytes, work, size, mnist is not None)
    if mnist is not None:
        figures += await _accuracies(mnist, size)
    return Result(
        benchmark="compression",
        parameters={
            "clients": size.clients,
            "rounds": size.rounds,
            "images_per_client": IMAGES // size.sites if mnist is not None else 0,
            "megabytes": size.megabytes,
        },
        figures=figures,
        notes=(
            "Encoding includes what is left for the next update, where there is feedback; no client carries any yet.",
            *(() if mnist is not None else ("MNIST was not there: no accuracies, and an update of random numbers.",)),
        ),
    )


def _speed(work: Path, how: str, size: Size) -> list[Figure]:
    """Encode and decode one large update; seconds for 100 MB of float32."""
    base, update = work / "large.npz", work / "large-update.npz"
    if not base.exists():
        random = np.random.default_rng(1)
        shape = (4, size.megabytes * 250_000 // 4)
        rows = random.normal(size=shape).astype(np.float32)
        write_npz(base, {f"w{n}": row for n, row in enumerate(rows)})
        rows += 1e-3 * random.standard_normal(shape, np.float32)
        write_npz(update, {f"w{n}": row for n, row in enumerate(rows)})
    compression = parse_compression(how)
    encoded, left, plain = work / "large.encoded", work / "large.left", work / "large.plain"

    def encode() -> None:
        encode_update(update, encoded, compression=compression, base=base, left=left)

    def decode() -> None:
        decode_update(encoded, plain, compression=compression, base=base, source="the benchmark")

    found = []
    for name, work_on in (("encode", encode), ("decode", decode)):
        seconds = [_seconds(work_on) * 100 / size.megabytes for _ in range(size.runs)]
        found.append(figure(f"{how}: {name} 100 MB", "s", seconds))
    return found


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _bytes(work: Path, size: Size, real: bool) -> list[Figure]:
    """Compress one update of the 2NN; its bytes, and how many times smaller it is."""
    base, update = work / "base.npz", work / "update.npz"
    run_script("build.py", work / "seed.npz")
    normalise(work / "seed.npz", base, source="the seed")
    if real:
        run_script("train.py", base, work / "trained.npz", RUNNEL_DATA=str(work / "sites" / "site-1.npz"))
        normalise(work / "trained.npz", update, source="train.py")
    else:
        random = np.random.default_rng(2)
        with np.load(base) as model:
            write_npz(update, {k: model[k] + 1e-2 * random.standard_normal(model[k].shape, "f4") for k in model.files})
    plain, figures = update.stat().st_size, []
    for how in size.compressions:
        encoded = update
        if how != "none":
            encoded = work / "encoded"
            encode_update(update, encoded, compression=parse_compression(how), base=base)
        nbytes = encoded.stat().st_size
        figures.append(figure(f"{how}: bytes of a 2NN update", "KB", [nbytes / 1e3]))
        figures.append(figure(f"{how}: times smaller", "x", [plain / nbytes], more_is_better=True))
    return figures


async def _accuracies(mnist: Path, size: Size) -> list[Figure]:
    """Train the 2NN with each compression, from one seed, by the same clients."""
    figures = []
    async with local_network(combiners=1) as network:
        sites = network.work / "sites"
        await asyncio.to_thread(run_script, "split.py", "--data", mnist, "--clients", size.sites, "--out", sites)
        await network.start_clients(
            size.clients, data=lambda n: {"default": sites / f"site-{n}.npz", "test": sites / "test.npz"}
        )
        seed = network.work / "seed.npz"
        await asyncio.to_thread(run_script, "build.py", seed)
        archive = (await asyncio.to_thread(pack, EXAMPLE, network.work / "package.tar.gz")).path
        package = (await network.ask(lambda http: http.packages.push(archive))).digest
        model = (await network.ask(lambda http: http.models.push(seed))).model
        for how in size.compressions:
            accuracy = await _accuracy(network, package, model, how, size)
            figures.append(figure(f"{how}: accuracy", "%", [100 * accuracy], more_is_better=True))
    return figures


async def _accuracy(network: LocalNetwork, package: str, seed: str, how: str, size: Size) -> float:
    session = await network.train(
        timeout_s=120.0 + 60.0 * size.rounds,
        package=package,
        seed=seed,
        rounds=size.rounds,
        min_clients=size.clients,
        validate_every=size.rounds,
        compress=how,
        client_settings=SETTINGS,
    )
    return session.rounds[-1].metrics["accuracy"]


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
