"""Faults drawn at random over many rounds and sessions; the ledger of counted updates must balance.

    python -m tests.chaos.soak --minutes 10 [--seed 7]

A seed draws a network, the strategies of its sessions and its faults, and gives the same in the same order (their
moments depend on the machine); after some sessions the next seed begins another network. A failure prints the seed of
its network and the story so far.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.chaos.soak_faults import draw
from tests.chaos.soak_network import Ground, SoakNetwork
from tests.chaos.soak_strategies import STRATEGIES

ROUNDS = 5
AT_ONCE = 2
BATCHES = 8  # of sessions at once, in one network


class Soak:
    """Sessions in a network, some at once, while faults happen; ``tell`` hears each line of the story."""

    def __init__(self, network: SoakNetwork, by: random.Random, tell: Callable[[str], object]) -> None:
        self._network = network
        self._by = by
        self._tell = tell
        self.faults = 0
        self.sessions = 0

    def run(self, seconds: float) -> None:
        """Go on until ``seconds`` are over, or all batches, and the last sessions have ended."""
        work = self._network.work()
        end = time.monotonic() + seconds
        for _ in range(BATCHES):
            self._batch(work)
            self._network.require_nothing_held()
            self._tell(f"balanced: {self.sessions} sessions, {self.faults} faults")
            if time.monotonic() > end:
                break

    def _batch(self, work: tuple[str, str]) -> None:
        drawn = drawn_strategies(self._by)
        self._tell(f"sessions begin: {', '.join(drawn)}")
        sessions = {name: self._network.start_session(work, ROUNDS, **STRATEGIES[name].options) for name in drawn}
        again: set[str] = set()
        for _ in range(self._by.randint(2, 4)):
            time.sleep(self._by.uniform(0.1, 1.5))
            fault = draw(self._network, self._by)
            self._tell(fault.told)
            again |= fault.again
            self.faults += 1
            fault.happen()
        # Nothing waits for a round's time-out.
        within_s = 0.8 * self._network.ROUND_TIMEOUT_S
        for name, session in sessions.items():
            STRATEGIES[name].require_balanced(self._network, session, ROUNDS, again=again, timeout_s=within_s)
            self.sessions += 1


def drawn_strategies(by: random.Random) -> list[str]:
    """Draw the strategies of sessions at once, by name."""
    return by.sample(sorted(STRATEGIES), AT_ONCE)


def soak(seed: int, seconds: float, tell: Callable[[str], object]) -> Soak:
    """Run the soak of one network, in a temporary folder; raises AssertionError when the ledger does not balance.

    Whatever else is raised, such as the error of a component that does not start again, is a failure too.
    """
    by = random.Random(seed)
    ground = Ground.drawn(by)
    tell(f"seed {seed}: {ground}")
    with (
        tempfile.TemporaryDirectory(prefix="runnel-soak-") as folder,
        ground.network(Path(folder) / "network", tell) as network,
    ):
        run = Soak(network, by, tell)
        run.run(seconds)
        return run


def main(argv: Sequence[str] | None = None, run: Callable[[int, float, Callable[[str], object]], object] = soak) -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    options = parser.parse_args(argv)
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes:g}: nothing is seen in no time")
    started = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {line}", flush=True)

    # As an error it ends the network too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    seed, left = options.seed, options.minutes * 60
    while left > 0:
        try:
            run(seed, left, tell)
        except Exception as error:  # noqa: BLE001 - whatever it is, the seed is what shows it again
            traceback.print_exc()
            tell(f"FAILED with --seed {seed}: {type(error).__name__}: {error}")
            return 1
        seed += 1
        left = options.minutes * 60 - (time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
