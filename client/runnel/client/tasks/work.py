"""A run that is ready for its containers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runnel.client.domain.cage import Cage
from runnel.client.domain.task_policy import TaskLimits
from runnel.client.tasks.contract import Layout
from runnel.common.protocol import RunState, TaskOrder
from runnel.common.tasks import TaskSpec

if TYPE_CHECKING:
    from runnel.client.tasks.images import TaskImage


class Voice(Protocol):
    """Hears how far one run is; its methods are called on the event loop."""

    def state(self, state: RunState, detail: str = "") -> None:
        """It is in ``state`` now."""
        ...

    def line(self, stream: str, text: str) -> None:
        """It wrote a line."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the containers of a run are made of.

    Args:
        order: of the run.
        spec: the task.
        folder: the run's own.
        layout: what each container finds.
        images: of the executors.
        cage: what each container may reach and take.
        time_s: seconds for all together; None: no limit.
        limits: of what they print.
        voice: hears how far it is.
    """

    order: TaskOrder
    spec: TaskSpec
    folder: Path
    layout: Layout
    images: Sequence[TaskImage]
    cage: Cage
    time_s: float | None
    limits: TaskLimits
    voice: Voice
