"""Doing one piece of work: package, model, entry point, and what its report says of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from runnel.client.audited_runs import AuditedRuns
from runnel.client.cancellation import is_called_off
from runnel.client.compressor import Compressor
from runnel.client.deadlines import Deadlines
from runnel.client.domain.contract import TrainResult, ValidateResult
from runnel.client.elapsed import timed
from runnel.client.entry_points import startup, train, validate
from runnel.client.gate import Admission, Gate, about_run
from runnel.client.model_cache import ModelCache
from runnel.client.outbox import Update
from runnel.client.package_cache import PackageCache
from runnel.client.runtimes import LineSink, Runtime, entry_point_variables
from runnel.common.blobs import Spares, in_thread, storage_errors
from runnel.common.compression import NO_COMPRESSION
from runnel.common.errors import RunnelError
from runnel.common.model_format import ModelFormat
from runnel.common.protocol import Assignment, AssignmentKey, Failure, Outcome, Stage, Work

log = structlog.get_logger()

TELLING_BYTES = 1 << 20
"""To tell of a smaller transfer takes as long as the transfer."""
_TELLING_S = 0.3  # whoever looks sees a shorter run as one that has ended


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What entry points of this client see.

    Args:
        name: of the client.
        databases: name to path or address.
        variables: further variables of their environment.
        run_timeout_s: the site's own limit for one run of an entry point; None: only the network's.
    """

    name: str
    databases: Mapping[str, Path | str]
    variables: Mapping[str, str]
    run_timeout_s: float | None


class Execution:
    """Does what an assignment asks for; whatever goes wrong with that is its outcome.

    Args:
        site: what entry points see.
        runtime: runs them.
        packages: prepared for it.
        gate: lets packages in.
        models: the global models.
        compressor: of updates.
        spent: files whose memory the next update is to get.
        deadlines: of work.
        tell: is told the stages of work.
        cleared: waits until what is settled of a session is cleared away.
        alone: one piece of work runs at a time.
    """

    def __init__(
        self,
        *,
        site: Site,
        runtime: Runtime,
        packages: PackageCache,
        gate: Gate,
        models: ModelCache,
        compressor: Compressor,
        spent: Spares,
        deadlines: Deadlines,
        tell: Callable[[AssignmentKey, Stage], None],
        cleared: Callable[[str], Awaitable[None]],
        alone: bool,
    ) -> None:
        self._site = site
        self._runtime = runtime
        self._packages = packages
        self._gate = gate
        self._models = models
        self._compressor = compressor
        self._spent = spent
        self._deadlines = deadlines
        self._tell = tell
        self._cleared = cleared
        self._alone = alone

    async def outcome(self, assignment: Assignment, folder: Path, say: LineSink) -> tuple[Outcome, Update | None]:
        """Work in ``folder``, made when it is needed; return what to report, and the update that belongs to it.

        Raises:
            CancelledError: the work was called off, whatever its clean-up came to.
        """
        key, name = assignment.key, self._site.name
        elapsed_s: dict[str, float] = {}
        log.info("working", key=str(key))
        try:
            # What the network leaves of its time covers preparing too; the deadline is carried, not restarted.
            async with self._deadlines.over(key):
                with storage_errors(folder), self._models.reading(assignment.model):
                    outcome, update = await self._execute(assignment, folder, say, elapsed_s)
        except TimeoutError:
            failure = Failure(
                code="timeout", message=f"{name} was not done with {key} long after the round's time was over."
            )
            outcome, update = Outcome(client=name, failure=failure), None
        except RunnelError as err:
            tail = str(err.fields.get("log_tail", ""))
            failure = Failure(code=err.code, message=str(err), log_tail=tail)
            outcome, update = Outcome(client=name, failure=failure), None
        except OSError as err:
            # Of this site's files: its operator can mend it, and the client goes on with other work.
            failure = Failure(code=RunnelError.code, message=f"{name}: {err}")
            outcome, update = Outcome(client=name, failure=failure), None
        if outcome.failure is not None:
            if is_called_off():
                log.error("work called off; its clean-up failed", key=str(key), error=outcome.failure.message)
                raise asyncio.CancelledError
            log.warning("work failed", key=str(key), code=outcome.failure.code, error=outcome.failure.message)
            say("runnel", f"failed: {outcome.failure.message}")
        return dataclasses.replace(outcome, elapsed_s=elapsed_s), update

    async def _execute(
        self, assignment: Assignment, folder: Path, say: LineSink, elapsed_s: dict[str, float]
    ) -> tuple[Outcome, Update | None]:
        key = assignment.key
        self._gate.require_open(assignment)
        if not self._packages.ready(assignment.package):
            self._tell(key, Stage.PREPARING)
        with timed(elapsed_s, "prepare"):
            package = await self._packages.files(assignment.package, say)
            admission = await self._gate.admit(assignment, package, self._packages.archive(assignment.package))
            runtime, common = self._runs(assignment, admission, folder, say)
            prepared = await self._packages.prepare(package, say)
            await startup(runtime, prepared, **common)
        if assignment.model.size_bytes > TELLING_BYTES and not self._models.has(assignment.model):
            self._tell(key, Stage.FETCHING)
        with timed(elapsed_s, "fetch"):
            model = await self._models.get(assignment.model)
        with timed(elapsed_s, "run"), self._told_if_long(key, Stage.RUNNING):
            common |= {
                "model": model,
                "settings_json": assignment.client_settings,
                "lend": self._alone,
                "model_format": ModelFormat.parse(assignment.model_format, field="assignment.model_format"),
            }
            if key.work is Work.TRAIN:
                if self._spent:
                    await in_thread(self._spent.empty)
                trained = await train(runtime, prepared, **common)
            else:
                validated = await validate(runtime, prepared, **common)
                return self._done(validated), None
        done = self._done(trained)
        if assignment.compression == NO_COMPRESSION:
            return done, Update(file=trained.update)
        with timed(elapsed_s, "compress"):
            # What the update before this one left is there when that one is cleared away.
            await self._cleared(key.session_id)
            base, how = await self._models.get(assignment.model), assignment.compression
            update = await in_thread(self._compressor.compress, key, trained.update, how=how, base=base, workdir=folder)
        return done, update

    @contextmanager
    def _told_if_long(self, key: AssignmentKey, stage: Stage) -> Iterator[None]:
        telling = asyncio.get_running_loop().call_later(_TELLING_S, self._tell, key, stage)
        try:
            yield
        finally:
            telling.cancel()

    def _runs(
        self, assignment: Assignment, admission: Admission, folder: Path, say: LineSink
    ) -> tuple[Runtime, dict[str, Any]]:
        """Return where entry points run and what each of them gets, as the site lets them."""
        key, site = assignment.key, self._site
        seen = admission.policy.databases_of(admission.facts, site.databases)
        databases = {name: where for name, where in site.databases.items() if name in seen}
        env = entry_point_variables(
            client_name=site.name,
            session_id=key.session_id,
            round_number=key.round,
            data=databases,
            site=site.variables,
        )
        about = about_run(assignment, admission, sorted(databases))
        return AuditedRuns(self._runtime, self._gate.audit, about), {
            "workdir": folder,
            "env": env,
            "timeout_s": admission.timeout_s(site.run_timeout_s),
            "limits": admission.limits,
            "say": say,
        }

    def _done(self, result: TrainResult | ValidateResult) -> Outcome:
        extra = json.dumps(result.extra) if result.extra else ""
        return Outcome(client=self._site.name, weight=result.weight, metrics=result.metrics, extra_json=extra)
