"""What containers of a task find at a site and where results are taken from, whatever community they were made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from runnel.common.protocol import TaskOrder
from runnel.common.tasks import TaskSpec

if TYPE_CHECKING:
    from runnel.client.runtimes.docker_engine import Engine

INPUT = "input"
"""In a run's folder: the CSV files of its selections, ``<table>.csv``; filled before a layout is made."""

PAYLOAD = "payload"
"""In a run's folder: the payload, a file; only of a task that has one."""

STDOUT, STDERR = "stdout", "stderr"
"""In a run's folder, after its last container: what these have printed, bounded. They are results by themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """A file or folder of the client, ``source``, that the container sees at the absolute path ``target``.

    ``read_only`` False: its processes own it for the time of the run, and the runner limits what they write there.
    """

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNetwork:
    """A network of the engine, by name, and the address at which this process is reached from within."""

    name: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What each container of a run finds.

    Args:
        mounts: files and folders.
        env: variables; those of an executor go before them. They may hold secrets of the site and are never logged.
        tmpfs: further folders in memory, besides ``/tmp``, which is one unless something is mounted there.
        hosts: names that resolve to these addresses, where the container has a network.
        network: of the run's own; None: the one that the site's policy gives.
    """

    mounts: tuple[Mounted, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    tmpfs: tuple[str, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    network: RunNetwork | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """A result file on the client's disk; it stays where it is until it is pushed."""

    name: str
    media_type: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database of the site that a container may see whole: ``where`` is a path, or an address as it is configured."""

    label: str
    kind: str
    where: Path | str = field(repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSite:
    """What a contract is told of the site for one run.

    Args:
        name: of the client.
        databases: those of the task that the policy lets it see whole, by label.
        variables: that the site gives to what runs there.
        group: folder of the run's group, which stays from one run to the next; None: the task has no group.
        settings: of the contract, from the site's configuration; may hold secrets.
        output_bytes: that the results may have together.
        output_files: that the results may have together, folders counted too.
    """

    name: str
    databases: Mapping[str, Database] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    group: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    output_bytes: int = 1 << 30
    output_files: int = 10_000


class TaskContract(Protocol):
    """What a task's containers expect. The methods block and are run in threads; each run has a folder of its own."""

    def lay_out(self, order: TaskOrder, spec: TaskSpec, folder: Path, site: TaskSite) -> Layout:
        """Write what the containers of a run are to find below ``folder``, and return where they find it.

        There already: :data:`INPUT` and :data:`PAYLOAD`. The runner puts the task's further inputs where they belong
        afterwards, in a mount of the layout or as one of their own, and adds volumes and outputs.

        Raises:
            InvalidInput: the task does not fit the contract.
            StorageFull: no room.
        """
        ...

    def collect(self, spec: TaskSpec, folder: Path, site: TaskSite) -> Sequence[Produced]:
        """Return what a run gives out, after its last container has ended, well or badly.

        Whatever is below ``folder`` and could be written by the containers is hostile: it is read through
        :mod:`runnel.client.tasks.beneath` only. :data:`STDOUT` and :data:`STDERR` are there; they are no part of this.

        Raises:
            BadOutput: what the contract needs is not there, or it is more than the site lets out; of a run that failed
                anyway, its own failure is told.
            StorageFull: no room.
        """
        ...


@runtime_checkable
class Discreet(Protocol):
    """A contract that gives containers secrets of the site."""

    def secrets(self, site: TaskSite) -> Sequence[str]:
        """Return them: they are struck out of all that a run prints and of why it failed."""
        ...


@runtime_checkable
class Accompanied(Protocol):
    """A contract with something of the client's beside its containers, such as a server that they call."""

    def accompany(
        self, order: TaskOrder, spec: TaskSpec, layout: Layout, *, engine: Engine, labels: Mapping[str, str]
    ) -> AbstractAsyncContextManager[Layout]:
        """Return what is entered around all containers of a run; it gives the layout that holds for them.

        ``labels`` are for everything that is made at ``engine``, which is so found again if the client is killed.
        """
        ...
