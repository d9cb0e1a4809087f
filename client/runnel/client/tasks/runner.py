"""One run at a site, from its order to its end: judged, prepared, run, collected."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from runnel.client.audit import AuditLog
from runnel.client.domain.policy import Policy
from runnel.client.domain.task_policy import TaskFacts, TaskPolicy, judge_task
from runnel.client.elapsed import timed
from runnel.client.tasks.beside import accompanied
from runnel.client.tasks.book import Ended, HeldRun
from runnel.client.tasks.contract import STDERR, STDOUT, Discreet, Layout, Produced, TaskContract, TaskSite
from runnel.client.tasks.discretion import Discretion
from runnel.client.tasks.egress import Traffic
from runnel.client.tasks.failures import failure_of
from runnel.client.tasks.selected_output import select, select_out
from runnel.client.tasks.site_facts import SiteFacts
from runnel.client.tasks.surroundings import Fetch, add_surroundings, collect_outputs, fetch_files
from runnel.client.tasks.task_cage import task_cage, task_time
from runnel.client.tasks.task_engine import TaskEngine
from runnel.client.tasks.under_way import UnderWay, about, recorded
from runnel.client.tasks.work import Voice, Work
from runnel.common.blobs import in_thread
from runnel.common.errors import (
    BadOutput,
    CorruptData,
    Expired,
    InvalidInput,
    PolicyRefused,
    RunnelError,
    TooManyAttempts,
)
from runnel.common.protocol import Failure, RunState, TaskOrder
from runnel.common.storage import storage_errors
from runnel.common.tasks import TaskSpec, task_spec

if TYPE_CHECKING:
    from runnel.client.tasks.open_engine import OpenEngine

MOST_ATTEMPTS = 5
"""How often a run is begun whose client was killed in its midst."""

_TEXT = "text/plain; charset=utf-8"

log = structlog.get_logger()


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
            ended = Ended(failure=failure_of(error), rejected=True)
            try:
                await in_thread(self._audit.append, "task.refused", about(order) | note)
            except CorruptData as broken:
                ended = Ended(failure=failure_of(broken))
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
        run = UnderWay(
            held=held, spec=spec, facts=facts, policy=policy, folder=folder, voice=voice, elapsed_s=elapsed_s
        )
        if spec.selects:
            return await select_out(run, site, self._audit)
        opened = await self._engine.open()
        try:
            return await self._carry_out_at(opened, run)
        finally:
            await opened.images.let_go(order.run_id, run.rules.pull)

    async def _carry_out_at(self, opened: OpenEngine, run: UnderWay) -> Ended:
        order, spec, folder, rules = run.held.order, run.spec, run.folder, run.rules

        def told(how_far: str) -> None:
            run.voice.state(RunState.PREPARING, how_far)

        with timed(run.elapsed_s, "pull"):
            images = [await opened.images.get(name, rules.pull, told, run_id=order.run_id) for name in run.facts.images]
        digests = tuple(image.digests for image in images)
        self._require(rules, dataclasses.replace(run.facts, digests=digests))
        contract = self._contract(spec)
        task_site = await self._task_site(run)
        with timed(run.elapsed_s, "fetch"):
            await fetch_files(spec, folder, self._fetch)
        with timed(run.elapsed_s, "select"):
            await select(run, self._site)
        with storage_errors(folder):
            own = await in_thread(contract.lay_out, order, spec, folder, task_site)
            layout = await in_thread(add_surroundings, spec, own, folder)
        discretion = Discretion(contract.secrets(task_site) if isinstance(contract, Discreet) else ())
        work = Work(
            order=order,
            spec=spec,
            folder=folder,
            layout=layout,
            images=images,
            cage=task_cage(run.policy, spec.resources),
            time_s=task_time(run.policy, spec.resources, self._site.time_s),
            limits=rules.limits,
            voice=discretion.voice(_Quiet(run.voice) if rules.review else run.voice),
        )
        note: dict[str, object] = {"images": list(run.facts.images), "digests": [image.digest for image in images]}
        async with recorded(self._audit, run, note | {"contract": spec.contract.value}) as outcome:
            traffic = Traffic()
            try:
                with timed(run.elapsed_s, "run"):
                    beside = accompanied(contract, work, opened, egress=rules.egress, traffic=traffic)
                    async with beside as whole:
                        exit_code, failure = await opened.run(whole)
                produced, failure = await self._collected(contract, work, own, task_site, failure, discretion)
            finally:
                if rules.egress:
                    self._audit.append("task.egress", {"run": order.run_id, **traffic.note()}, durable=False)
            await outcome.finished(produced, exit_code=exit_code, failure=failure)
        return Ended(
            failure=failure,
            exit_code=exit_code,
            produced=produced,
            image_digest=images[-1].digest,
            reviewed=rules.review,
        )

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

    async def _task_site(self, run: UnderWay) -> TaskSite:
        site, spec = self._site, run.spec
        if unknown := [label for label in spec.databases if label not in site.databases]:
            raise InvalidInput(f"{site.name} has no database {', '.join(unknown)} that a container could see.")
        group = None
        if spec.group is not None:
            group = await in_thread(site.groups.folder, run.held.order.organisation, spec.group)
        return TaskSite(
            name=site.name,
            databases={label: site.databases[label] for label in spec.databases},
            variables=site.variables,
            group=group,
            settings=site.settings.get(spec.contract, {}),
            output_bytes=run.output_bytes,
            output_files=run.rules.limits.output_files,
        )

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


@dataclass(frozen=True, slots=True)
class _Quiet:
    """Lets out in which state a run is; no line before somebody has looked: the client's own tell the exit status."""

    voice: Voice

    def state(self, state: RunState, detail: str = "") -> None:
        self.voice.state(state, detail)

    def line(self, stream: str, text: str) -> None:
        pass
