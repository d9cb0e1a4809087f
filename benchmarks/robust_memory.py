"""Peak memory of reducer and combiner, and seconds per round, with robust rules, by number of clients.

As ``memory.py``, for rules that need every update: the combiner forwards them in one file, the reducer reads them side
by side. What of that is in memory must be flat in the number of clients, and what a client adds are the buffers of its
transfer; disk is that many models at each of the two. All rules are measured with small models, with which those
buffers are most of it, and the median with larger ones, too.

    python -m benchmarks.robust_memory [--quick] [--json]
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.light_rounds import LightRounds, light_rounds
from benchmarks.usage import MB

TARGET_MODELS = 3.0
# Of smaller ones, what Python itself and the buffers of transfers need is the larger part.
TARGET_FROM_MB = 20
# A chunk that is under way, and what gRPC lets a client send ahead.
TARGET_CLIENT_MB = {"reducer": 0.1, "combiner": 1.0}

RULES: dict[str, dict[str, float]] = {
    "median": {},
    "trimmed_mean": {"beta": 0.2},
    "krum": {"f": 1},
    "multi_krum": {"f": 1},
    "bulyan": {"f": 1},
    "geometric_median": {},
    "norm_clipping": {"max_norm": 5.0},
}

FEW, MANY = 20, 64
SMALL_MB, LARGE_MB = 5, 20


async def measure(quick: bool) -> Result:
    """Measure all rules and numbers of clients."""
    figures: list[Figure] = []
    if quick:
        figures += _figures("median", 1, 5, await _rounds("median", 1, 5, 1))
    else:
        figures += await measure_rule("median", LARGE_MB)
        for strategy in RULES:
            figures += await measure_rule(strategy, SMALL_MB)
    return result(figures, rounds=1 if quick else 2)


async def measure_rule(strategy: str, megabytes: int) -> list[Figure]:
    """Measure a rule with few and with many clients."""
    few, many = [await _rounds(strategy, megabytes, clients, 2) for clients in (FEW, MANY)]
    return [
        *_figures(strategy, megabytes, FEW, few),
        *_figures(strategy, megabytes, MANY, many),
        *(
            figure(
                f"{strategy}, {megabytes} MB: {role}, for each client beyond {FEW}",
                "MB",
                [max(0.0, many.peaks[role] - few.peaks[role]) / MB / (MANY - FEW)],
                target=target,
            )
            for role, target in TARGET_CLIENT_MB.items()
        ),
    ]


def result(figures: Iterable[Figure], *, rounds: int) -> Result:
    """Return what was measured as a result."""
    return Result(
        benchmark="robust_memory",
        parameters={"combiners": 1, "rounds": rounds, "clients_are": "light, in one process"},
        figures=list(figures),
        notes=(
            "A model is float32; base is the idle process.",
            "Combiner and reducer each hold every update on disk until the round is reduced.",
        ),
    )


async def _rounds(strategy: str, megabytes: int, clients: int, rounds: int) -> LightRounds:
    return await light_rounds(megabytes, clients, rounds, strategy=strategy, strategy_options=RULES[strategy])


def _figures(strategy: str, megabytes: int, clients: int, measured: LightRounds) -> list[Figure]:
    name = f"{strategy}, {megabytes} MB, {clients} clients"
    target = TARGET_MODELS if megabytes >= TARGET_FROM_MB else None
    figures = []
    for role, peak in measured.peaks.items():
        figures.append(figure(f"{name}: {role} peak above base", "models", [peak / (megabytes * MB)], target=target))
    figures.append(figure(f"{name}: round", "s", measured.rounds_s))
    return figures


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
