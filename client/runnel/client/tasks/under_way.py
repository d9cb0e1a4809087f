"""A run that its site lets begin, and what the site's log says of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from runnel.client.audit import AuditLog
from runnel.client.domain.policy import Policy
from runnel.client.domain.task_policy import TaskFacts, TaskPolicy
from runnel.client.tasks.book import HeldRun
from runnel.client.tasks.contract import Produced
from runnel.client.tasks.work import Voice
from runnel.common.blobs import in_thread
from runnel.common.errors import RunnelError
from runnel.common.protocol import Failure, TaskOrder
from runnel.common.tasks import TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """A run that its site lets begin.

    Args:
        held: with its order.
        spec: the task.
        facts: by which the policy judged it.
        policy: of the site, as it was then.
        folder: the run's own.
        voice: hears how far it is.
        elapsed_s: seconds that each part of it took; parts are added as they end.
    """

    held: HeldRun
    spec: TaskSpec
    facts: TaskFacts
    policy: Policy
    folder: Path
    voice: Voice
    elapsed_s: dict[str, float]

    @property
    def rules(self) -> TaskPolicy:
        """The policy on tasks."""
        return self.policy.tasks or TaskPolicy()

    @property
    def output_bytes(self) -> int:
        """Of all results: what the site lets out, or less if the task says so."""
        most, wished = self.rules.limits.output_bytes, self.spec.resources.output_bytes
        return most if wished is None else min(most, wished)


@dataclass(slots=True)
class Outcome:
    """How a run ended, as far as that is known."""

    end: str = "killed"
    exit_code: int | None = None
    bytes_out: int = 0

    async def finished(
        self, produced: Sequence[Produced], *, exit_code: int | None = None, failure: Failure | None = None
    ) -> None:
        """The run came to its end, with these results."""
        self.bytes_out = await in_thread(lambda: sum(each.path.stat().st_size for each in produced))
        self.end, self.exit_code = "finished" if failure is None else failure.code, exit_code


def about(order: TaskOrder) -> dict[str, object]:
    """Return what the site's log says of each run."""
    return {"run": order.run_id, "task": order.task_id, "organisation": order.organisation, "user": order.user}


@asynccontextmanager
async def recorded(audit: AuditLog, run: UnderWay, note: Mapping[str, object]) -> AsyncIterator[Outcome]:
    """Have the site's log say that a run begins, with ``note``, and how the block ended."""
    order, since, outcome = run.held.order, time.monotonic(), Outcome()
    told = {**about(order), **note, "databases": sorted(run.facts.databases), "attempt": run.held.attempt}
    await in_thread(audit.append, "task.started", told)
    try:
        yield outcome
    except asyncio.CancelledError:
        outcome.end = "called off"
        raise
    except Exception as error:
        outcome.end = error.code if isinstance(error, RunnelError) else RunnelError.code
        raise
    finally:
        # Here and not in a thread, so that a cancellation has it too: it does not wait for the disk.
        audit.append(
            "task.ended",
            {
                "run": order.run_id,
                "bytes_out": outcome.bytes_out,
                "end": outcome.end,
                "exit_status": outcome.exit_code,
                "elapsed_s": round(time.monotonic() - since, 3),
            },
            durable=False,
        )
