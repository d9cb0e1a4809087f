"""The networks of a soak: their shapes, their databases, and disks that can be filled."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.adding_network import AddingNetwork
from tests.eventually import eventually_blocking
from tests.postgresql import binaries, running_cluster
from tests.process.clocked_network import ClockedNetwork
from tests.process.process_network import START_S
from tests.small_disk import CannotMount, SmallDisk, mounted_disk

CLIENTS = 4
DISK_BYTES = 256 << 20  # more than all files of a network that is not asked to keep many
WITH_DISK = ("reducer", "c1", "site-1")
DATABASES = ("SQLite", "PostgreSQL")
SETTINGS = {
    "RUNNEL_HEARTBEAT_S": "1",
    "RUNNEL_REDUCER_KEEP_MODELS": "2",
    "RUNNEL_COMBINER_KEEP_BYTES": str(64 << 20),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Who is below whom. ``above``: the combiner below which the others are; ``settings``: of all components."""

    combiners: int
    above: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


SHAPES = {
    "flat": Shape(combiners=2),
    "tree": Shape(combiners=2, above="top"),
    # There is no room at the combiner for one of the clients.
    "direct": Shape(combiners=1, settings={"RUNNEL_COMBINER_CAPACITY": str(CLIENTS - 1)}),
}


class SoakNetwork(ClockedNetwork, AddingNetwork):
    """Clocks that can be set, and ``disks`` by the name of whose state is on them, where they can be had."""

    def __init__(self, folder: Path, disks: Mapping[str, SmallDisk], **environ: str) -> None:
        super().__init__(folder, **environ)
        self.disks = disks

    def start_shape(self, shape: Shape) -> None:
        self.start(shape.combiners, CLIENTS, above=shape.above)
        if "RUNNEL_COMBINER_CAPACITY" in shape.settings:
            eventually_blocking(lambda: "reducer" in self.places().values(), timeout_s=START_S, state=self.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a soak happens on: the names of a shape and of a database."""

    shape: str
    database: str

    @classmethod
    def drawn(cls, by: random.Random) -> Ground:
        return cls(shape=by.choice(sorted(SHAPES)), database=by.choice(DATABASES))

    def __str__(self) -> str:
        return f"shape {self.shape}, database {self.database}"

    @contextmanager
    def network(self, folder: Path, tell: Callable[[str], object]) -> Iterator[SoakNetwork]:
        """Run a network of this kind below ``folder``; what this machine does not have is told, and left out."""
        shape = SHAPES[self.shape]
        with ExitStack() as stack:
            settings = {**SETTINGS, **shape.settings}
            if self.database == "PostgreSQL" and binaries() is None:
                tell("no PostgreSQL on this machine: SQLite in its place")
            elif self.database == "PostgreSQL":
                settings["RUNNEL_REDUCER_DATABASE"] = stack.enter_context(running_cluster()).new_database()
            disks = {}
            try:
                for name in WITH_DISK:
                    disks[name] = stack.enter_context(mounted_disk(folder / name, DISK_BYTES))
            except CannotMount as error:
                tell(f"no full disks on this machine: that needs {error}")
            network = stack.enter_context(SoakNetwork(folder, disks, **settings))
            network.start_shape(shape)
            yield network
