"""Faults drawn at random over many rounds and sessions; the ledger of counted updates must balance.

    python -m tests.chaos.soak --minutes 10 [--seed 7]

One seed gives the same faults in the same order (their moments depend on the machine). A failure prints the seed and
the story so far.
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

from tests.chaos.adding_network import AddingNetwork
from tests.chaos.proxy import FAULTS, Fault

COMBINERS, CLIENTS = 2, 4
ROUNDS = 5


class Soak:
    """Sessions one after the other, two at once, while faults happen; ``tell`` hears each line of the story."""

    def __init__(self, network: AddingNetwork, seed: int, tell: Callable[[str], object]) -> None:
        self._network = network
        self._random = random.Random(seed)
        self._tell = tell
        self.faults = 0
        self.sessions = 0
        self._killed: set[str] = set()

    def run(self, seconds: float) -> None:
        """Go on until ``seconds`` are over and the last sessions have ended."""
        work = self._network.work()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sessions = [self._network.start_session(work, ROUNDS) for _ in range(2)]
            self._killed.clear()
            for _ in range(self._random.randint(2, 4)):
                time.sleep(self._random.uniform(0.1, 1.5))
                self._fault()
            for session in sessions:
                # A client that is killed at work may do it again; nobody else. Nothing waits for a round's time-out.
                within_s = 0.8 * self._network.ROUND_TIMEOUT_S
                self._network.require_exact(session, ROUNDS, again=tuple(self._killed), timeout_s=within_s)
                self.sessions += 1
            self._network.require_nothing_held()
            self._tell(f"balanced: {self.sessions} sessions, {self.faults} faults")

    def _fault(self) -> None:
        self.faults += 1
        processes = ["reducer", *(f"c{n}" for n in range(1, COMBINERS + 1)), *self._network.steps]
        match self._random.choice(["kill", "kill", "stop", "cut"]):
            case "kill":
                who = self._random.choice(processes)
                self._tell(f"kill -9 {who}")
                self._killed.add(who)
                self._network.kill(who)
                time.sleep(self._random.uniform(0, 1))
                self._network.relaunch(who)
            case "stop":
                who, seconds = self._random.choice(processes), self._random.uniform(0.5, 5)
                self._tell(f"SIGSTOP {who} for {seconds:.1f} s")
                self._network.process(who).send_signal(signal.SIGSTOP)
                time.sleep(seconds)
                self._network.process(who).send_signal(signal.SIGCONT)
            case _:
                where, seconds = self._random.choice(sorted(self._network.proxies)), self._random.uniform(0.5, 5)
                fault = self._random.choice(FAULTS)
                self._tell(f"{fault.value} before {where} for {seconds:.1f} s")
                self._network.proxies[where].inflict(fault)
                time.sleep(seconds)
                self._network.proxies[where].inflict(Fault.NONE)


def soak(seed: int, seconds: float, tell: Callable[[str], object]) -> Soak:
    """Run a soak in a temporary folder; raises AssertionError when the ledger does not balance.

    Whatever else is raised, such as the error of a component that does not start again, is a failure too.
    """
    with (
        tempfile.TemporaryDirectory(prefix="runnel-soak-") as folder,
        AddingNetwork(Path(folder), RUNNEL_HEARTBEAT_S="1") as network,
    ):
        network.start(COMBINERS, CLIENTS)
        run = Soak(network, seed, tell)
        run.run(seconds)
        return run


def main(argv: Sequence[str] | None = None, run: Callable[..., object] = soak) -> int:
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

    tell(f"seed {options.seed}, {options.minutes:g} minutes")
    # As an error it ends the network too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        run(options.seed, options.minutes * 60, tell)
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed is what shows it again
        traceback.print_exc()
        tell(f"FAILED with --seed {options.seed}: {type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
