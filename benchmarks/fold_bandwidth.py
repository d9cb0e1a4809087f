"""How fast updates are folded into a round's sum, beside numpy's plain ``acc += w * x`` in the same run.

Writes models of several sizes to a temporary folder, reads each once so that it is in the page cache, and tells for
each operation the best of some runs: seconds, GB of update per second, and the ratio to numpy with everything in
memory already. ``peak_rss`` is that of a process that only folds: above its own start, in multiples of the model.

    python benchmarks/fold_bandwidth.py [--megabytes 1 10 100] [--runs 7] [--json]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from runnel.common.aggregation import Part, WeightedSum, make_optimizer, reduce_round
from runnel.common.protocol import PayloadKind
from runnel.common.tensors import normalise, open_npz, write_npz

WEIGHT = 3.7

FOLD_ALONE = """
import sys
from pathlib import Path
from runnel.common.aggregation import WeightedSum
from runnel.common.tensors import open_npz

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

with open_npz(Path(sys.argv[1]), source="the benchmark") as model:
    start = peak()
    total = WeightedSum.create(Path(sys.argv[2]), model.schema)
    for _ in range(3):
        total.add(model, 3.7)
    total.merge(total.finish(), total.weight, source="the benchmark")
    print(peak() - start)
"""


def best(run: Callable[[], object], runs: int) -> float:
    """Return the seconds of the fastest of ``runs`` runs, after one that does not count."""
    run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(megabytes: int, runs: int, folder: Path) -> list[dict[str, Any]]:
    """Measure all operations on one float32 model of ``megabytes`` MB."""
    n = megabytes * 250_000
    x = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    update, sum_file = folder / "update.npz", folder / "sum"
    write_npz(update, {"w": x})
    accumulator = np.zeros(n)

    def plain() -> None:
        nonlocal accumulator
        accumulator += WEIGHT * x

    with open_npz(update, source="the benchmark") as model:
        total = WeightedSum.create(sum_file, model.schema)
        seconds: dict[str, float] = {
            "numpy: acc += w * x": best(plain, runs),
            "WeightedSum.add (check, fold)": best(lambda: total.add(model, WEIGHT), runs),
            "require_finite": best(model.require_finite, runs),
        }
        total.finish()
    seconds["WeightedSum.merge (check, fold)"] = best(lambda: total.merge(sum_file, WEIGHT, source="sum"), runs)
    parts = [Part(path=sum_file, kind=PayloadKind.WEIGHTED_SUM, weight=1.0, source=f"sum {i}") for i in range(3)]
    few = max(1, runs // 3)
    for name in ("fedavg", "fedadam"):
        rule = make_optimizer(name)
        seconds[f"reduce_round of 3 sums, {name}"] = best(
            lambda rule=rule: reduce_round(parts, update, rule, None, folder / "next.npz", folder / "state"),  # type: ignore[misc]
            few,
        )
    seconds["normalise (checksums, rewrite)"] = best(
        lambda: normalise(update, folder / "again.npz", source="the benchmark"), few
    )
    peak = None
    if Path("/proc/self/status").exists():
        command = [sys.executable, "-c", FOLD_ALONE, str(update), str(folder / "alone")]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    plain_s = seconds["numpy: acc += w * x"]
    return [
        {
            "megabytes": megabytes,
            "operation": name,
            "seconds": s,
            "gb_per_s": x.nbytes / s / 1e9,
            "times_numpy": s / plain_s,
            "peak_rss_models": peak / x.nbytes if peak is not None and name.startswith("WeightedSum.add") else None,
        }
        for name, s in seconds.items()
    ]


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory(prefix="runnel-fold-") as folder:
        for megabytes in arguments.megabytes:
            rows += measure(megabytes, arguments.runs, Path(folder))
    machine = {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__}
    if arguments.json:
        print(json.dumps({**machine, "rows": rows}))
        return
    table = Table(title="Folding float32 updates, best of runs", caption=", ".join(machine.values()))
    for heading in ("MB", "operation", "ms", "GB/s", "x numpy", "peak RSS / model"):
        table.add_column(heading, justify="left" if heading == "operation" else "right", no_wrap=True)
    for row in rows:
        peak = row["peak_rss_models"]
        table.add_row(
            str(row["megabytes"]),
            row["operation"],
            f"{row['seconds'] * 1e3:.1f}",
            f"{row['gb_per_s']:.2f}",
            f"{row['times_numpy']:.2f}",
            "" if peak is None else f"{peak:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
