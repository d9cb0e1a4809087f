"""The ledger of tasks in both databases: one end for each run, and files that are somebody's or nobody's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from runnel.common.errors import Gone, InvalidInput, NotFound
from runnel.common.protocol import BlobRef, Failure, LogLine, ResultFile, RunResult, RunState, TaskNews
from runnel.reducer.domain.task_views import TaskFilter, TaskStatus
from runnel.reducer.domain.tasks import OpenRun
from runnel.reducer.store import registry, run_files, run_lines, task_ledger, task_lists
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.tables import RemovalRow, RunRow
from tests.doubles.reducer_state import database_in
from tests.doubles.task_state import add_task, join_sites

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]

WEEK = timedelta(days=7)


def blob(number: int) -> BlobRef:
    return BlobRef(sha256=f"{number:064x}", size_bytes=number)


@pytest.fixture
async def journal(tmp_path: Path, each_database: None) -> AsyncIterator[Journal]:
    async with database_in(tmp_path) as database:
        yield Journal(database)


async def said(journal: Journal, run: OpenRun, state: RunState, result: RunResult | None = None) -> bool:
    """Enter news of a run, as its client says it."""
    news = TaskNews(run_id=run.run_id, client=run.client, state=state, result=result)
    async with journal.transaction() as tx:
        row = (await task_ledger.runs_by_id(tx.session, [run.run_id]))[run.run_id]
        return await task_ledger.take_news(tx, row, news, keep=WEEK)


async def pushed(journal: Journal, run: OpenRun, *refs: BlobRef) -> None:
    async with journal.transaction() as tx:
        for ref in refs:
            await run_files.add_file(tx.session, run.run_id, ref)


def done(*files: tuple[str, BlobRef]) -> RunResult:
    made = tuple(ResultFile(name=name, media_type="text/plain", blob=ref) for name, ref in files)
    return RunResult(exit_code=0, files=made, elapsed_s={"run": 1.5})


async def given_up(journal: Journal) -> list[str]:
    async with journal.database.read() as tx:
        return sorted(await tx.scalars(select(RemovalRow.digest)))


async def test_the_first_end_that_is_told_is_the_run_s(journal: Journal) -> None:
    (run,) = await add_task(journal, "a")
    assert await said(journal, run, RunState.ASSIGNED)
    assert await said(journal, run, RunState.RUNNING)
    assert not await said(journal, run, RunState.PREPARING)
    await pushed(journal, run, blob(1), blob(2), blob(3))
    assert await said(journal, run, RunState.DONE, done(("stdout", blob(1)), ("stderr", blob(1)), ("output", blob(2))))
    failure = RunResult(failure=Failure(code="oom", message="too late"))
    assert not await said(journal, run, RunState.FAILED, failure)
    async with journal.database.read() as tx:
        view = await task_lists.one_task(tx, await task_lists.find_task(tx, "default", run.task_id), described=True)
    assert (view.status, view.counts) == (TaskStatus.DONE, {"done": 1})
    (shown,) = view.runs
    assert [(file.name, file.size_bytes) for file in shown.files] == [("stdout", 1), ("output", 2), ("stderr", 1)]
    assert (shown.exit_code, shown.elapsed_s, shown.error_code) == (0, {"run": 1.5}, None)
    assert await given_up(journal) == [blob(3).sha256]


async def test_an_end_with_files_that_did_not_come_changes_nothing(journal: Journal) -> None:
    (run,) = await add_task(journal, "a")
    await pushed(journal, run, blob(1))
    with pytest.raises(InvalidInput, match="'output' that was not pushed"):
        await said(journal, run, RunState.DONE, done(("stdout", blob(1)), ("output", blob(2))))
    async with journal.database.read() as tx:
        row = (await task_ledger.runs_by_id(tx, [run.run_id]))[run.run_id]
        assert (row.state, row.finished_at) == ("queued", None)
        assert await run_files.pushed(tx, run.run_id) == {blob(1).sha256: 1}
        assert [each.run_id for each in await task_ledger.open_runs(tx)] == [run.run_id]


async def test_a_task_is_over_when_all_its_runs_are(journal: Journal) -> None:
    first, second = await add_task(journal, "a", "b")
    kinds = []
    for run, state, result in (
        (first, RunState.DONE, done()),
        (second, RunState.FAILED, RunResult(failure=Failure(code="timeout", message="It took too long."))),
    ):
        await said(journal, run, RunState.ASSIGNED)
        await said(journal, run, state, result)
        async with journal.database.read() as tx:
            found = await task_lists.find_task(tx, "default", run.task_id)
            kinds.append((found.status, found.finished_at is not None))
    assert kinds == [("running", False), ("failed", True)]
    events = await journal.events(first.task_id, 0, 100)
    assert [event.kind for event in events].count("task.ended") == 1
    assert await journal.verify() == len(events)


async def test_results_are_kept_for_their_time_and_files_for_tasks_while_they_are_needed(journal: Journal) -> None:
    async with journal.transaction() as tx:
        await join_sites(tx.session, "a")
        await tx.session.flush()
        await run_files.add_blob(tx.session, "default", blob(5), keep=WEEK)
        await run_files.add_blob(tx.session, "default", blob(6), keep=WEEK)
    (waiting,) = await add_task(journal, "a", payload={"blob": {"sha256": blob(5).sha256, "size_bytes": 5}})
    (run,) = await add_task(journal, "a")
    await pushed(journal, run, blob(1))
    await said(journal, run, RunState.DONE, done(("output", blob(1))))
    later = datetime.now(UTC) + WEEK + timedelta(hours=1)
    async with journal.transaction() as tx:
        row = await tx.session.get_one(RunRow, run.run_id)
        assert (await run_files.require_file(tx.session, row, "output")).size_bytes == 1
        with pytest.raises(NotFound, match="has no file 'log'"):
            await run_files.require_file(tx.session, row, "log")
        assert await run_files.next_old(tx.session) is not None
        assert await run_files.give_up_old(tx.session, later)
        assert not await run_files.give_up_old(tx.session, later)
        with pytest.raises(Gone, match="were kept until"):
            await run_files.require_file(tx.session, row, "output")
        used = {number: await registry.is_used(tx.session, blob(number).sha256) for number in (1, 5, 6)}
    assert used == {1: False, 5: True, 6: False}
    assert await given_up(journal) == [blob(1).sha256, blob(6).sha256]
    await said(journal, waiting, RunState.REJECTED, RunResult(failure=Failure(code="policy_refused", message="No.")))
    async with journal.transaction() as tx:
        assert await run_files.give_up_old(tx.session, later)
        assert not await registry.is_used(tx.session, blob(5).sha256)


async def test_tasks_name_only_files_of_their_organisation_and_clients_that_are_its_own(journal: Journal) -> None:
    async with journal.transaction() as tx:
        await join_sites(tx.session, "theirs", organisation="other")
        await tx.session.flush()
        await run_files.add_blob(tx.session, "other", blob(7), keep=None)
    with pytest.raises(InvalidInput, match="not stored here"):
        await add_task(journal, "mine", payload={"blob": {"sha256": blob(7).sha256, "size_bytes": 7}})
    async with journal.transaction() as tx:
        assert not (await task_lists.tasks(tx.session, "default", TaskFilter(), None, 10, described=True)).items
        with pytest.raises(NotFound):
            await task_lists.find_run(tx.session, "default", "run-none")


async def test_lines_of_runs_come_in_pages_and_odd_characters_do_no_harm(journal: Journal) -> None:
    (run,) = await add_task(journal, "a")
    async with journal.transaction() as tx:
        lines = [LogLine(at_ms=number, stream="stdout", text=f"line {number}\0") for number in range(5)]
        await run_lines.add_lines(tx.session, run.run_id, lines)
        assert await run_lines.is_run_of(tx.session, run.run_id, "a")
        assert not await run_lines.is_run_of(tx.session, run.run_id, "b")
    async with journal.database.read() as reading:
        page = await run_lines.lines_of(reading, run.run_id, None, 3)
        rest = await run_lines.lines_of(reading, run.run_id, page.next_cursor, 3)
    assert [line.text for line in (*page.items, *rest.items)] == [f"line {number}\ufffd" for number in range(5)]
    assert rest.next_cursor is None


async def test_sub_tasks_are_found_by_the_run_that_asked(journal: Journal) -> None:
    (parent,) = await add_task(journal, "a", central=True)
    children = await add_task(journal, "a", "b", parent_run=parent.run_id, name="part")
    assert all(child.sub for child in children)
    async with journal.database.read() as tx:
        below = await task_ledger.unfinished_below(tx, [parent.run_id])
        wanted = TaskFilter(parent_run=parent.run_id, name="pa", site="b", status=TaskStatus.QUEUED)
        listed = await task_lists.tasks(tx, "default", wanted, None, 10, described=False)
        orders = await task_ledger.orders(tx, [child.run_id for child in children])
    assert {row.id for row in below} == {child.run_id for child in children}
    assert [(task.parent_run, task.spec) for task in listed.items] == [(parent.run_id, None)]
    assert {order.parent_run for order in orders} == {parent.run_id}
