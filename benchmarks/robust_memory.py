"""Peak memory and disk of reducer and combiner, and seconds per round, with robust rules, by number of clients.

As ``memory.py``, for rules that need every update: the combiner forwards them in one file, the reducer reads them side
by side. Memory must stay flat in the number of clients; disk is that many models at each of the two, which is told.

    python -m benchmarks.robust_memory [--quick] [--json]
"""

from __future__ import annotations

import asyncio

from benchmarks.figures import Figure, Result, figure, run_alone
from benchmarks.light_rounds import light_rounds
from benchmarks.usage import MB

TARGET_MODELS = 3.0
RULES: dict[str, dict[str, float]] = {"median": {}, "krum": {"f": 1}, "geometric_median": {}}


async def measure(quick: bool) -> Result:
    """Measure all rules and numbers of clients."""
    megabytes, counts, rounds = (1, (5,), 1) if quick else (20, (5, 20), 3)
    rules = ("median",) if quick else tuple(RULES)
    figures: list[Figure] = []
    for strategy in rules:
        for clients in counts:
            figures += await _row(strategy, megabytes, clients, rounds, target=None if quick else TARGET_MODELS)
    return Result(
        benchmark="robust_memory",
        parameters={"combiners": 1, "rounds": rounds, "clients_are": "light, in one process"},
        figures=figures,
        notes=(
            "A model is float32; base is the idle process.",
            "Combiner and reducer each hold every update on disk until the round is reduced.",
        ),
    )


async def _row(strategy: str, megabytes: int, clients: int, rounds: int, *, target: float | None) -> list[Figure]:
    measured = await light_rounds(megabytes, clients, rounds, strategy=strategy, strategy_options=RULES[strategy])
    name = f"{strategy}, {megabytes} MB, {clients} clients"
    figures = []
    for role, peak in measured.peaks.items():
        figures.append(figure(f"{name}: {role} peak above base", "models", [peak / (megabytes * MB)], target=target))
    figures.append(figure(f"{name}: round", "s", measured.rounds_s))
    return figures


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
