"""What the reducer asks of a package's ``ServerFunctions``: one step, as it goes to the program that takes it.

The standard library only, as this is read before the walls stand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Confinement(Enum):
    """What a package's code at the reducer can reach.

    ``SANDBOX``: nothing but the interpreter, its package and what it is given; see
    :mod:`runnel.reducer.server_functions.walls`. ``UNCONFINED``: whatever the reducer's user can, within limits of
    memory and time. ``OFF``: none is run.
    """

    OFF = "off"
    SANDBOX = "sandbox"
    UNCONFINED = "unconfined"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """Of one step. ``scratch_bytes``: of its ``/tmp``, in memory; ``file_bytes``: of each file that it writes."""

    memory_bytes: int
    cpu_s: int
    file_bytes: int
    scratch_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where things are. ``inputs`` has ``model`` and ``updates``, raw arrays one after another, and ``state``."""

    package: str
    inputs: str
    answer: str
    result: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    With ``clients`` it begins a round, with ``updates`` it makes the next model, with neither the class is only loaded.

    Attributes:
        parent: process id of the reducer; when that is gone the step ends.
        file: of the package, with the class in it.
        functions: those that the class is to have; others are not called.
        confinement: whether walls are to be put up.
        mountpoint: an empty folder for them.
        hidden: folders and files that are not shown even if the interpreter's folders hold them.
        shim: folder of the stand-in for the library ``fedn``.
        files: where things are, outside of the walls.
        limits: see there.
        seed: of the generators of ``random`` and ``numpy.random``.
        state: whether there is one to go on from.
        remembers: whether the state is to be written.
        tensors: name, shape and dtype of each array of the model.
        clients: names of the clients to choose from.
        updates: client and metadata of each update, in the order in which they lie in the file.
    """

    parent: int
    file: str
    functions: Sequence[str]
    confinement: Confinement
    mountpoint: str
    hidden: Sequence[str]
    shim: str
    files: Files
    limits: StepLimits
    seed: str
    state: bool = False
    remembers: bool = False
    tensors: Sequence[tuple[str, Sequence[int], str]] = ()
    clients: Sequence[str] | None = None
    updates: Sequence[tuple[str, Mapping[str, Any]]] | None = None

    @property
    def incremental(self) -> bool:
        """Whether updates are handed over one by one."""
        return "incremental_aggregate" in self.functions

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` takes."""
        return {**dataclasses.asdict(self), "confinement": self.confinement.value}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Step:
        """Return what :meth:`as_json` gave."""
        return Step(
            **{
                **document,
                "confinement": Confinement(document["confinement"]),
                "files": Files(**document["files"]),
                "limits": StepLimits(**document["limits"]),
            }
        )
