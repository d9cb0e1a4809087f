"""The faults of a soak. Each is drawn as a value that says what happens, for how long, and how it is over."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from tests.chaos.proxy import FAULTS, ONE_WAY, Fault
from tests.chaos.soak_network import SoakNetwork

HOUR_S, DAY_S = 3600, 86400
ROOM_BYTES = (0, 1 << 20, 4 << 20)  # none, not for a model, for one


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """``told`` in the story; lasts ``seconds`` from the end of ``begin`` to ``end``.

    ``again``: whoever of the clients may have to train a round again for it; ``starts``: whether a component that was
    killed can be started meanwhile.
    """

    told: str
    seconds: float
    begin: Callable[[], object]
    end: Callable[[], object] = lambda: None
    again: frozenset[str] = frozenset()
    starts: bool = True

    def happen(self) -> None:
        self.begin()
        time.sleep(self.seconds)
        self.end()


def someone(network: SoakNetwork, by: random.Random) -> str:
    """Draw a component: a tier, and one of it."""
    return by.choice(
        by.choice([["reducer"], [name for name in network.proxies if name != "reducer"], [*network.steps]])
    )


def kill(network: SoakNetwork, by: random.Random) -> Trouble:
    who = someone(network, by)
    return Trouble(
        told=f"kill -9 {who}",
        seconds=by.uniform(0, 1),
        begin=lambda: network.kill(who),
        end=lambda: network.relaunch(who),
        again=frozenset({who}),
    )


def stop(network: SoakNetwork, by: random.Random) -> Trouble:
    who, seconds = someone(network, by), by.uniform(0.5, 5)
    return Trouble(
        told=f"SIGSTOP {who} for {seconds:.1f} s",
        seconds=seconds,
        begin=lambda: network.process(who).send_signal(signal.SIGSTOP),
        end=lambda: network.process(who).send_signal(signal.SIGCONT),
    )


def cut(network: SoakNetwork, by: random.Random) -> Trouble:
    """Between a node and all those below it."""
    where, seconds, fault = by.choice(list(network.proxies)), by.uniform(0.5, 5), by.choice([*FAULTS, *ONE_WAY])
    return Trouble(
        told=f"{fault.value} before {where} for {seconds:.1f} s",
        seconds=seconds,
        begin=lambda: network.proxies[where].inflict(fault),
        end=lambda: network.proxies[where].inflict(Fault.NONE),
    )


def jump(network: SoakNetwork, by: random.Random) -> Trouble:
    """A clock is wrong from now on."""
    who, seconds = someone(network, by), by.choice([-DAY_S, -HOUR_S, HOUR_S, DAY_S])
    return Trouble(told=f"clock of {who} {seconds:+} s", seconds=0.0, begin=lambda: network.shift(who, seconds))


def full_disk(network: SoakNetwork, by: random.Random) -> Trouble:
    who, room, seconds = by.choice(list(network.disks)), by.choice(ROOM_BYTES), by.uniform(0.5, 3)
    stack = ExitStack()
    return Trouble(
        told=f"{room} bytes of room at {who} for {seconds:.1f} s",
        seconds=seconds,
        begin=lambda: stack.enter_context(network.disks[who].filled(room)),
        end=stack.close,
        again=frozenset({who}),
        starts=False,
    )


def kill_during(network: SoakNetwork, by: random.Random) -> Trouble:
    """Somebody is killed while something else is the matter, and started again before or after that is over."""
    around = by.choice([stop, cut, full_disk] if network.disks else [stop, cut])(network, by)
    death = kill(network, by)
    inside = by.random() < 0.5 and around.starts
    ends = (death.end, around.end) if inside else (around.end, death.end)

    def begin() -> None:
        around.begin()
        time.sleep(death.seconds)
        death.begin()

    def end() -> None:
        for each in ends:
            each()

    return Trouble(
        told=f"{death.told}{', started again,' if inside else ''} during {around.told}",
        seconds=around.seconds,
        begin=begin,
        end=end,
        again=death.again | around.again,
    )


def draw(network: SoakNetwork, by: random.Random) -> Trouble:
    """Draw one of those that this machine can do."""
    shares = {kill: 4, stop: 2, cut: 4, jump: 2, full_disk: 2 if network.disks else 0, kill_during: 3}
    (kind,) = by.choices(list(shares), list(shares.values()))
    return kind(network, by)
