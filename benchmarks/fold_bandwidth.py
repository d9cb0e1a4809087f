"""How fast updates are folded into a round's sum and rounds reduced, beside numpy's plain ``acc += w * x``.

Writes models of several sizes to a temporary folder and reads each once, so that it is in the page cache. The ratio is
to numpy with everything in memory already. Peak memory is that of a process that only folds: above what it held before,
in multiples of the model.

    python -m benchmarks.fold_bandwidth [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.limits import fold_seconds
from benchmarks.usage import MB
from runnel.common.aggregation import Part, WeightedSum, make_optimizer, reduce_round
from runnel.common.protocol import PayloadKind
from runnel.common.tensors import normalise, open_npz, write_npz

WEIGHT = 3.7

FOLD_ALONE = """
import os, sys
from pathlib import Path
from benchmarks.usage import forget_peak, peak_bytes
from runnel.common.aggregation import WeightedSum
from runnel.common.tensors import open_npz

with open_npz(Path(sys.argv[1]), source="the benchmark") as model:
    forget_peak(os.getpid())
    before = peak_bytes(os.getpid())
    total = WeightedSum(model.schema)
    for _ in range(3):
        total.add(model, 3.7)
    Path(sys.argv[2]).write_bytes(total.finish())
    total.merge(Path(sys.argv[2]), total.weight, source="the benchmark")
    print(peak_bytes(os.getpid()) - before)
"""


async def measure(quick: bool) -> Result:
    """Measure models of all sizes."""
    sizes, runs = ((1,), 2) if quick else ((1, 10, 100), 7)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="runnel-bench-") as folder:
        for megabytes in sizes:
            figures += await asyncio.to_thread(_of_size, megabytes, runs, Path(folder))
    return Result(benchmark="fold_bandwidth", parameters={"dtype": "float32"}, figures=figures)


def _of_size(megabytes: int, runs: int, folder: Path) -> list[Figure]:
    plain = fold_seconds(int(megabytes * MB), runs)
    figures = [figure(f"{megabytes} MB: numpy, acc += w * x", "ms", [1e3 * each for each in plain])]
    update = folder / "update.npz"
    write_npz(update, {"w": np.random.default_rng(0).standard_normal(megabytes * 250_000, dtype=np.float32)})
    for name, run in _operations(update, folder):
        seconds = list(_times(run, runs))
        figures.append(figure(f"{megabytes} MB: {name}", "ms", [1e3 * each for each in seconds]))
        ratios = [each / statistics.median(plain) for each in seconds]
        figures.append(figure(f"{megabytes} MB: {name}, times numpy", "x", ratios))
    command = [sys.executable, "-c", FOLD_ALONE, str(update), str(folder / "alone")]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    figures.append(figure(f"{megabytes} MB: peak memory of folding", "models", [peak / (megabytes * MB)]))
    return figures


def _operations(update: Path, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is timed, by name."""
    sum_file = folder / "sum"
    with open_npz(update, source="the benchmark") as model:
        total = WeightedSum(model.schema)
        yield "WeightedSum.add (check, fold)", lambda: total.add(model, WEIGHT)
        yield "require_finite", model.require_finite
        sum_file.write_bytes(total.finish())
    yield "WeightedSum.merge (check, fold)", lambda: total.merge(sum_file, WEIGHT, source="sum")
    parts = [Part(path=sum_file, kind=PayloadKind.WEIGHTED_SUM, weight=1.0, source=f"sum {i}") for i in range(3)]
    for name in ("fedavg", "fedadam"):
        optimizer = make_optimizer(name)
        reduce = partial(reduce_round, parts, update, optimizer, None, folder / "next.npz", folder / "state")
        yield f"reduce_round of 3 sums, {name}", reduce
    again = folder / "again.npz"
    yield "normalise (checksums, rewrite)", lambda: normalise(update, again, source="the benchmark")


def _times(run: Callable[[], object], runs: int) -> Iterator[float]:
    """Yield the seconds of each run, after one that does not count."""
    run()
    for _ in range(runs):
        began = time.perf_counter()
        run()
        yield time.perf_counter() - began


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
