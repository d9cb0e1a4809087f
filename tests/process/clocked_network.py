"""A network of processes whose clocks can be set."""

from __future__ import annotations

import sys

from tests.doubles import set_clock
from tests.eventually import eventually_blocking
from tests.process.process_network import ProcessNetwork


class ClockedNetwork(ProcessNetwork):
    """Each component has a wall clock of its own; monotonic clocks are left as they are, like those of a machine."""

    by_exec = True

    def command(self, name: str) -> list[str]:
        clock = self.folder / f"{name}.clock"
        if not clock.exists():
            self.shift(name, 0)
        return [sys.executable, set_clock.__file__, str(clock)]

    def shift(self, name: str, seconds: float) -> None:
        """Set the clock of a component to that many seconds after this machine's."""
        clock = self.folder / f"{name}.clock"
        beside = clock.with_suffix(".new")
        beside.write_text(f"{seconds:+.0f}\n")
        beside.replace(clock)
        if self.components[name].process is not None:
            done = clock.with_name(clock.name + ".set")
            eventually_blocking(lambda: done.exists() and done.read_text() == clock.read_text())
