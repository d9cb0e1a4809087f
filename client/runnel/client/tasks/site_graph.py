"""What a client that takes tasks is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runnel.client.audit import AuditLog
from runnel.client.data import DatabaseConfig, SiteSelector
from runnel.client.domain.policy import Policy
from runnel.client.tasks.book import RunBook
from runnel.client.tasks.contract import TaskContract
from runnel.client.tasks.ends import WayUp
from runnel.client.tasks.measures import TaskMeasures
from runnel.client.tasks.plain import PlainContract
from runnel.client.tasks.pytaskmanager import PyTaskManagerContract
from runnel.client.tasks.release import RUNS, Decisions
from runnel.client.tasks.runner import TaskRunner
from runnel.client.tasks.site_data import whole_databases
from runnel.client.tasks.site_facts import SiteFacts
from runnel.client.tasks.site_tasks import SiteTasks
from runnel.client.tasks.surroundings import Groups
from runnel.client.tasks.task_engine import EngineSettings, TaskEngine
from runnel.client.tasks.vantage6 import Vantage6Contract
from runnel.common.protocol import BlobRef
from runnel.common.tasks import Contract

if TYPE_CHECKING:
    from runnel.client.tasks.vantage6_proxy import Network

_FETCH_DEADLINE_S = 3600.0


class Link(WayUp, Protocol):
    """What runs need of the client's link, with what brings their inputs."""

    def fetch(self, ref: BlobRef, target: Path, *, deadline_s: float) -> Awaitable[None]:
        """Fetch a blob into a file."""
        ...


def contracts(network: Network | None) -> dict[Contract, TaskContract]:
    """Return the contracts that this client knows; ``network`` is what central functions ask, if they may."""
    return {
        Contract.PLAIN: PlainContract(),
        Contract.PYTASKMANAGER: PyTaskManagerContract(),
        Contract.VANTAGE6: Vantage6Contract(network),
    }


def site_tasks(
    link: Link,
    *,
    name: str,
    state: Path,
    engine: EngineSettings,
    policy: Callable[[], Policy],
    audit: AuditLog,
    parallel: int,
    databases: Mapping[str, DatabaseConfig],
    variables: Mapping[str, str],
    settings: Mapping[Contract, Mapping[str, str]],
    time_s: float | None,
    clock: Callable[[], datetime],
    network: Network | None = None,
) -> SiteTasks:
    """Return what holds and carries out the runs of a client. Blocks.

    Args:
        link: the way up.
        name: of the client.
        state: its folder.
        engine: which one, and how.
        policy: the site's, as it is now.
        audit: the site's log.
        parallel: how many runs may go on at once.
        databases: of the site, by label.
        variables: that every container gets.
        settings: of contracts.
        network: what containers may ask; None: nothing.
        time_s: the client's own limit for a run.
        clock: the present time.
    """
    groups = Groups(state / "groups")
    groups.sweep()
    measures = TaskMeasures()
    door = TaskEngine(engine, started=measures.started.observe)

    async def fetch(ref: BlobRef, target: Path) -> None:
        await link.fetch(ref, target, deadline_s=_FETCH_DEADLINE_S)

    def now_ms() -> int:
        return int(clock().timestamp() * 1000)

    site = SiteFacts(
        name=name,
        policy=policy,
        contracts=contracts(network),
        groups=groups,
        databases=whole_databases(databases),
        selector=SiteSelector(databases),
        variables=variables,
        settings=settings,
        time_s=time_s,
    )
    return SiteTasks(
        name=name,
        book=RunBook(state / RUNS),
        decisions=Decisions(state / RUNS),
        runner=TaskRunner(site=site, engine=door, fetch=fetch, audit=audit, now_ms=now_ms),
        engine=door,
        link=link,
        policy=policy,
        audit=audit,
        parallel=parallel,
        measures=measures,
        clock=clock,
    )
