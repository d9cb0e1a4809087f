"""One run at a site, from its order to its end: judged, prepared, run, collected."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from runnel.client.audit import AuditLog
from runnel.client.domain.policy import Policy
from runnel.client.domain.task_policy import TaskFacts, TaskLimits, TaskPolicy, judge_task
from runnel.client.elapsed import timed
from runnel.client.tasks.beside import accompanied
from runnel.client.tasks.book import Ended, HeldRun
from runnel.client.tasks.contract import (
    INPUT,
    STDERR,
    STDOUT,
    Database,
    Discreet,
    Layout,
    Produced,
    TaskContract,
    TaskSite,
)
from runnel.client.tasks.discretion import Discretion
from runnel.client.tasks.egress import Traffic
from runnel.client.tasks.failures import failure_of
from runnel.client.tasks.selected_output import selected_output
from runnel.client.tasks.surroundings import Fetch, Groups, add_surroundings, collect_outputs, fetch_files
from runnel.client.tasks.task_cage import task_cage, task_time
from runnel.client.tasks.task_engine import TaskEngine
from runnel.client.tasks.work import Voice, Work
from runnel.common.blobs import in_thread
from runnel.common.errors import BadOutput, Expired, InvalidInput, PolicyRefused, RunnelError, TooManyAttempts
from runnel.common.protocol import Failure, RunState, TaskOrder
from runnel.common.storage import storage_errors
from runnel.common.tasks import Contract, Selection, TaskSpec, task_spec

if TYPE_CHECKING:
    from runnel.client.tasks.open_engine import OpenEngine

MOST_ATTEMPTS = 5
"""How often a run is begun whose client was killed in its midst."""

_TEXT = "text/plain; charset=utf-8"

log = structlog.get_logger()


class Selector(Protocol):
    """Takes selections from the site's databases; ends its queries when it is cancelled."""

    async def __call__(self, selections: Sequence[Selection], folder: Path, *, minimum_rows: int) -> None:
        """Write one CSV file for each selected table into ``folder``.

        Raises:
            RunnelError: a database, table or field is not there or not to be seen, or too little was found.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What runs need to know of this site.

    Args:
        name: of the client.
        policy: the site's, as it is now.
        databases: that containers may see whole, by label.
        selector: of the site's data; None: this client has none that could be selected from.
        variables: that contracts give to every container.
        settings: of contracts, by the contract.
        contracts: by name.
        groups: folders that runs share.
        time_s: the client's own limit for one run.
    """

    name: str
    policy: Callable[[], Policy]
    contracts: Mapping[Contract, TaskContract]
    groups: Groups
    databases: Mapping[str, Database] = field(default_factory=dict)
    selector: Selector | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Mapping[Contract, Mapping[str, str]] = field(default_factory=dict, repr=False)
    time_s: float | None = None


class TaskRunner:
    """Carries runs out; whatever goes wrong is how they end.

    Args:
        site: where.
        engine: of containers.
        fetch: brings blobs.
        audit: the site's log; nothing runs that is not in it.
        now_ms: Unix time.
    """

    def __init__(
        self,
        *,
        site: SiteFacts,
        engine: TaskEngine,
        fetch: Fetch,
        audit: AuditLog,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._site = site
        self._engine = engine
        self._fetch = fetch
        self._audit = audit
        self._now_ms = now_ms

    async def run(self, held: HeldRun, folder: Path, voice: Voice) -> Ended:
        """Carry out a run that was begun, in the empty ``folder``; what it produced is there when this returns."""
        elapsed_s = {"queued": max(0.0, (self._now_ms() - held.received_ms) / 1000)}
        order = held.order
        try:
            if held.attempt > MOST_ATTEMPTS:
                raise TooManyAttempts(
                    f"{self._site.name} ended {MOST_ATTEMPTS} times in the midst of this run, and does not try again.",
                    hint="If the run itself ends the client, it may take more of the machine than it should.",
                )
            ended = await self._carry_out(held, folder, voice, elapsed_s)
        except PolicyRefused as error:
            note = {"rule": error.fields.get("rule", ""), "reason": error.message}
            await in_thread(self._audit.append, "task.refused", _about(order) | note)
            ended = Ended(failure=failure_of(error), rejected=True)
        except RunnelError as error:
            ended = Ended(failure=failure_of(error))
        except OSError as error:
            # Of this site's files: its people can mend it, and the client goes on with other runs.
            ended = Ended(failure=Failure(code=RunnelError.code, message=f"{self._site.name}: {error}"))
        except Exception as error:
            # A mistake in a contract or a library, which some task has found: it must not end the client, and with it
            # all other runs, each time that it starts.
            log.exception("a run ended by a mistake of this program", run=order.run_id)
            message = f"{self._site.name}: something unexpected happened ({type(error).__name__}); its log tells more."
            ended = Ended(failure=Failure(code=RunnelError.code, message=message))
        if ended.failure is not None:
            log.warning("run failed", run=order.run_id, code=ended.failure.code, error=ended.failure.message)
        return dataclasses.replace(ended, elapsed_s=elapsed_s)

    async def _carry_out(self, held: HeldRun, folder: Path, voice: Voice, elapsed_s: dict[str, float]) -> Ended:
        order, site = held.order, self._site
        if order.expires_at_ms is not None and self._now_ms() >= order.expires_at_ms and held.attempt <= 1:
            raise Expired(f"{site.name} could not begin the run before its task expired.")
        spec = task_spec(order.spec, source=f"{order.organisation}/{order.user}")
        policy = site.policy()
        facts = self._judged(policy, order, spec)
        rules = policy.tasks or TaskPolicy()
        if spec.selects:
            return await self._select_out(held, spec, facts, folder, rules, voice, elapsed_s)
        opened = await self._engine.open()
        try:
            return await self._carry_out_at(opened, held, folder, voice, elapsed_s, spec, policy, facts)
        finally:
            await opened.images.let_go(order.run_id, rules.pull)

    async def _carry_out_at(
        self,
        opened: OpenEngine,
        held: HeldRun,
        folder: Path,
        voice: Voice,
        elapsed_s: dict[str, float],
        spec: TaskSpec,
        policy: Policy,
        facts: TaskFacts,
    ) -> Ended:
        order, site, rules = held.order, self._site, policy.tasks or TaskPolicy()

        def told(how_far: str) -> None:
            voice.state(RunState.PREPARING, how_far)

        with timed(elapsed_s, "pull"):
            images = [await opened.images.get(name, rules.pull, told, run_id=order.run_id) for name in facts.images]
        digests = tuple(image.digests for image in images)
        self._require(rules, dataclasses.replace(facts, digests=digests))
        contract = self._contract(spec)
        task_site = await self._task_site(order, spec, rules.limits)
        with timed(elapsed_s, "fetch"):
            await fetch_files(spec, folder, self._fetch)
        with timed(elapsed_s, "select"):
            await self._select(spec, folder, rules, voice)
        with storage_errors(folder):
            own = await in_thread(contract.lay_out, order, spec, folder, task_site)
            layout = await in_thread(add_surroundings, spec, own, folder)
        work = Work(
            order=order,
            spec=spec,
            folder=folder,
            layout=layout,
            images=images,
            cage=task_cage(policy, spec.resources),
            time_s=task_time(policy, spec.resources, site.time_s),
            limits=rules.limits,
            voice=voice if not rules.review else _Quiet(voice),
        )
        discretion = Discretion(contract.secrets(task_site) if isinstance(contract, Discreet) else ())
        work = dataclasses.replace(work, voice=discretion.voice(work.voice))
        since = time.monotonic()
        digest = images[-1].digest
        note: dict[str, object] = {"images": list(facts.images), "digests": [image.digest for image in images]}
        note |= {"databases": sorted(facts.databases), "contract": spec.contract.value, "attempt": held.attempt}
        await in_thread(self._audit.append, "task.started", _about(order) | note)
        end, bytes_out, ended, traffic = "killed", 0, None, Traffic()
        try:
            with timed(elapsed_s, "run"):
                beside = accompanied(contract, work, opened, egress=rules.egress, traffic=traffic)
                async with beside as whole:
                    exit_code, failure = await opened.run(whole)
            produced, failure = await self._collected(contract, work, own, task_site, failure, discretion)
            bytes_out = await in_thread(lambda: sum(each.path.stat().st_size for each in produced))
            end = "finished" if failure is None else failure.code
            ended = Ended(
                failure=failure,
                exit_code=exit_code,
                produced=produced,
                image_digest=digest,
                reviewed=rules.review,
            )
        except asyncio.CancelledError:
            end = "called off"
            raise
        except RunnelError as error:
            end = error.code
            raise
        finally:
            if rules.egress:
                self._audit.append("task.egress", {"run": order.run_id, **traffic.note()}, durable=False)
            self._ended(order, end, None if ended is None else ended.exit_code, since, bytes_out)
        return ended

    async def _select_out(
        self,
        held: HeldRun,
        spec: TaskSpec,
        facts: TaskFacts,
        folder: Path,
        rules: TaskPolicy,
        voice: Voice,
        elapsed_s: dict[str, float],
    ) -> Ended:
        """Give out what a task selects that runs nothing; the policy lets it, or this is not reached."""
        order, limits, wished = held.order, rules.limits, spec.resources.output_bytes
        note = {"databases": sorted(facts.databases), "selects": True, "attempt": held.attempt}
        await in_thread(self._audit.append, "task.started", _about(order) | note)
        since, end, bytes_out = time.monotonic(), "killed", 0
        try:
            with timed(elapsed_s, "select"):
                await self._select(spec, folder, rules, voice)
            most = limits.output_bytes if wished is None else min(limits.output_bytes, wished)
            produced = await in_thread(selected_output, folder, most_bytes=most, most_files=limits.output_files)
            bytes_out, end = produced.path.stat().st_size, "finished"
            return Ended(produced=[produced], reviewed=rules.review)
        except asyncio.CancelledError:
            end = "called off"
            raise
        except RunnelError as error:
            end = error.code
            raise
        finally:
            self._ended(order, end, None, since, bytes_out)

    def _ended(self, order: TaskOrder, end: str, exit_code: int | None, since: float, bytes_out: int) -> None:
        note = {"end": end, "exit_status": exit_code, "elapsed_s": round(time.monotonic() - since, 3)}
        # Here and not in a thread, so that a cancellation has it too: it does not wait for the disk.
        about = {"run": order.run_id, "bytes_out": bytes_out}
        self._audit.append("task.ended", {**about, **note}, durable=False)

    def _judged(self, policy: Policy, order: TaskOrder, spec: TaskSpec) -> TaskFacts:
        facts = TaskFacts(
            organisation=order.organisation,
            user=order.user,
            images=tuple(each.image for each in spec.executors),
            databases=frozenset({*(each.database for each in spec.selections), *spec.databases}),
            network=task_cage(policy, spec.resources).network,
            central=spec.central,
            selects=spec.selects,
        )
        self._require(policy.tasks, facts)
        return facts

    def _require(self, rules: TaskPolicy | None, facts: TaskFacts) -> None:
        broken = judge_task(rules, facts)
        if broken is not None:
            raise PolicyRefused(
                f"The policy of {self._site.name} refuses the run by its rule {broken.rule}: {broken.reason}.",
                hint="Ask the people of that site.",
                rule=broken.rule,
            )

    def _contract(self, spec: TaskSpec) -> TaskContract:
        try:
            return self._site.contracts[spec.contract]
        except KeyError:
            raise InvalidInput(f"{self._site.name} does not know the contract {spec.contract.value}.") from None

    async def _task_site(self, order: TaskOrder, spec: TaskSpec, limits: TaskLimits) -> TaskSite:
        site, wished = self._site, spec.resources.output_bytes
        if unknown := [label for label in spec.databases if label not in site.databases]:
            raise InvalidInput(f"{site.name} has no database {', '.join(unknown)} that a container could see.")
        group = None
        if spec.group is not None:
            group = await in_thread(site.groups.folder, order.organisation, spec.group)
        return TaskSite(
            name=site.name,
            databases={label: site.databases[label] for label in spec.databases},
            variables=site.variables,
            group=group,
            settings=site.settings.get(spec.contract, {}),
            output_bytes=limits.output_bytes if wished is None else min(limits.output_bytes, wished),
            output_files=limits.output_files,
        )

    async def _select(self, spec: TaskSpec, folder: Path, rules: TaskPolicy, voice: Voice) -> None:
        (folder / INPUT).mkdir()
        if not spec.selections:
            return
        if self._site.selector is None:
            raise InvalidInput(f"{self._site.name} has no databases that could be selected from.")
        voice.state(RunState.PREPARING, "selecting")
        await self._site.selector(spec.selections, folder / INPUT, minimum_rows=rules.minimum_rows)

    async def _collected(
        self,
        contract: TaskContract,
        work: Work,
        own: Layout,
        site: TaskSite,
        failure: Failure | None,
        discretion: Discretion,
    ) -> tuple[list[Produced], Failure | None]:
        produced = [Produced(name=name, media_type=_TEXT, path=work.folder / name) for name in (STDOUT, STDERR)]
        for each in produced:
            await in_thread(discretion.rewrite, each.path)
        if failure is not None:
            failure = dataclasses.replace(
                failure, message=discretion.text(failure.message), log_tail=discretion.text(failure.log_tail)
            )
        most = {"most_bytes": site.output_bytes, "most_files": site.output_files}
        try:
            made = [*await in_thread(contract.collect, work.spec, work.folder, site)]
            made += await in_thread(collect_outputs, work.spec, own, work.layout, work.folder, **most)
            await in_thread(_require_room, made, site.output_bytes)
        except RunnelError as error:
            return produced, failure or failure_of(error)
        names = {each.name for each in made}
        return [*(each for each in produced if each.name not in names), *made], failure


def _require_room(produced: Sequence[Produced], most: int) -> None:
    size = sum(os.lstat(each.path).st_size for each in produced)
    # An archive of many small files is larger than these are.
    if size > most + most // 4 + (1 << 20):
        raise BadOutput(f"The results are {size:,} bytes; the site lets out {most:,}.", limit="output")


def _about(order: TaskOrder) -> dict[str, object]:
    return {"run": order.run_id, "task": order.task_id, "organisation": order.organisation, "user": order.user}


@dataclass(frozen=True, slots=True)
class _Quiet:
    """Lets out in which state a run is; no line before somebody has looked: the client's own tell the exit status."""

    voice: Voice

    def state(self, state: RunState, detail: str = "") -> None:
        self.voice.state(state, detail)

    def line(self, stream: str, text: str) -> None:
        pass
