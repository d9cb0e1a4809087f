"""Which models keep their files, and that the others lose them only after the database says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from runnel.common.blobs import BlobStore
from runnel.common.errors import Conflict, Gone
from runnel.common.tensors import write_npz
from runnel.reducer.domain.values import SessionConfig, SessionStatus, StopRule
from runnel.reducer.engine.retention import Retention, kept_models, superfluous
from runnel.reducer.store import registry
from runnel.reducer.store.blobs import FolderBlobs
from runnel.reducer.store.database import Database
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.tables import ModelRow, RemovalRow, RoundRow, SessionRow
from runnel.reducer.uploads import Uploads
from tests.doubles.faulty_blobs import FaultyBlobs
from tests.doubles.reducer_state import add_session, database_in, model_row

pytestmark = pytest.mark.unit

SESSION = "ses-aaaaaaaaaa"


class StubbornStore(BlobStore):
    """Can't delete while ``stuck``; counts how often it was ``asked``."""

    stuck = False
    asked = 0

    def delete(self, sha256: str) -> bool:
        self.asked += 1
        if self.stuck:
            raise PermissionError("no")
        return super().delete(sha256)


@dataclass
class State:
    """A database, a blob store and retention over both."""

    folder: Path
    database: Database
    blobs: StubbornStore

    def __post_init__(self) -> None:
        self.journal = Journal(self.database)

    def put(self, content: str) -> str:
        file = self.folder / "file"
        file.write_text(content)
        return self.blobs.adopt(file).sha256

    async def add_trail(self, rounds: int, **config: Any) -> None:
        """A session in which so many rounds are committed; the model of round n is ``mod-n``, with accuracy n % 4."""
        async with self.database.write() as tx:
            seed = model_row("mod-seed", digest=self.put("seed"))
            config = {"rounds": 9} | config
            await add_session(
                tx,
                SESSION,
                config=SessionConfig(strategy="fedadam", **config),
                phase=SessionStatus.COMMITTED,
                model=seed,
            )
        for number in range(1, rounds + 1):
            await self.commit(number)

    async def commit(self, number: int, *, content: str = "", session: str = SESSION, name: str = "") -> None:
        async with self.database.write() as tx:
            row = await tx.get_one(SessionRow, session)
            model = model_row(name or f"mod-{number}", after_s=number, digest=self.put(content or f"model {number}"))
            model.session_id, model.round, model.parent_id = session, number, row.model_id
            model.metrics = {"accuracy": number % 4}
            model.optimizer_state = self.put(f"state {session} {number}")
            tx.add(model)
            tx.add(
                RoundRow(
                    session_id=session,
                    number=number,
                    status="committed",
                    started_at=model.created_at,
                    model_id=model.id,
                )
            )
            row.model_id, row.round = model.id, number

    async def retain(self, default: int = 0, *, files: bool = True) -> None:
        retention = Retention(self.journal, FolderBlobs(self.blobs), default)
        async with self.journal.transaction() as tx:
            some = await retention.give_up(tx, await tx.session.get_one(SessionRow, SESSION))
        if some and files:
            await retention.remove_files()

    async def with_files(self) -> set[str]:
        """Return the models that have their files by their rows, and check those that lie there."""
        async with self.database.read() as tx:
            models = list(await tx.scalars(select(ModelRow).where(~ModelRow.id.startswith("mod-own"))))
        kept = {model.id for model in models if model.removed_at is None}
        assert kept == {model.id for model in models if self.blobs.find(model.digest) is not None}
        return kept

    def files(self) -> int:
        return sum(1 for _ in self.blobs.root.glob("??/*"))

    async def model(self, name: str) -> ModelRow:
        async with self.database.read() as tx:
            return await tx.get_one(ModelRow, name)


@pytest.fixture
async def state(tmp_path: Path, each_database: None) -> AsyncIterator[State]:
    async with database_in(tmp_path) as database:
        yield State(tmp_path, database, StubbornStore(tmp_path / "blobs"))


async def test_the_newest_stay_and_the_trail_stays_whole(state: State) -> None:
    await state.add_trail(5, keep_models=2)
    await state.retain()
    assert await state.with_files() == {"mod-seed", "mod-4", "mod-5"}
    assert state.files() == 4  # and the newest state of the optimizer
    gone = await state.model("mod-3")
    assert gone.removed_at is not None
    assert (gone.parent_id, gone.round, gone.metrics) == ("mod-2", 3, {"accuracy": 3})
    (event,) = await state.journal.events(SESSION, 0, 10)
    assert (event.kind, event.data) == ("model.removed", {"models": ["mod-3", "mod-2", "mod-1"], "kept": 2})
    await state.retain()
    assert len(await state.journal.events(SESSION, 0, 10)) == 1


async def test_a_session_that_says_nothing_does_as_the_reducer_is_set(state: State) -> None:
    await state.add_trail(3)
    await state.retain()
    assert len(await state.with_files()) == 4
    await state.retain(1)
    assert await state.with_files() == {"mod-seed", "mod-3"}


async def test_without_a_limit_only_old_states_of_the_optimizer_go(state: State) -> None:
    await state.add_trail(3, keep_models=0)
    await state.retain(1)
    assert len(await state.with_files()) == 4
    assert state.files() == 5
    assert [(await state.model(f"mod-{n}")).optimizer_state is None for n in (1, 2, 3)] == [True, True, False]


async def test_the_best_by_the_stop_rule_stays(state: State) -> None:
    await state.add_trail(6, keep_models=1, stop_when=StopRule(metric="accuracy", comparison=">=", threshold=9))
    await state.retain()
    assert await state.with_files() == {"mod-seed", "mod-3", "mod-6"}


async def test_what_other_sessions_need_stays(state: State) -> None:
    await state.add_trail(5, keep_models=1)
    async with state.database.write() as tx:
        for number, phase in ((1, SessionStatus.TRAINING), (2, SessionStatus.STOPPED), (3, SessionStatus.FINISHED)):
            name, own = f"ses-{'bcd'[number - 1] * 10}", model_row(f"mod-own-{number}", digest=f"{number}" * 64)
            row = await add_session(tx, name, phase=phase, model=own)
            # The first runs and has begun with a model of ours, the second would go on from one; the third is beyond.
            row.seed_id = f"mod-{number}"
            row.model_id = f"mod-{number}" if number == 2 else row.model_id
        before = (await tx.get_one(ModelRow, "mod-1")).optimizer_state
    await state.retain()
    assert await state.with_files() == {"mod-seed", "mod-1", "mod-2", "mod-5"}
    assert (await state.model("mod-1")).optimizer_state == before


async def test_a_file_that_another_model_has_as_well_stays(state: State) -> None:
    await state.add_trail(2, keep_models=1)
    same = (await state.model("mod-1")).digest
    async with state.database.write() as tx:
        tx.add(model_row("mod-twin", digest=same))
    await state.retain()
    assert state.blobs.find(same) is not None
    assert (await state.model("mod-1")).removed_at is not None
    async with state.database.write() as tx:
        (await tx.get_one(ModelRow, "mod-twin")).removed_at = model_row("x").created_at
        tx.add(RemovalRow(digest=same))
    await Retention(state.journal, FolderBlobs(state.blobs), 0).remove_files()
    assert state.blobs.find(same) is None


async def test_a_process_that_ends_between_rows_and_files_leaves_the_rest_to_the_next(state: State) -> None:
    await state.add_trail(3, keep_models=1)
    before = state.files()
    await state.retain(files=False)
    assert state.files() == before
    again = Retention(Journal(state.database), FolderBlobs(BlobStore(state.blobs.root)), 0)
    await again.remove_files()
    assert state.files() == 3
    await again.remove_files()
    assert state.files() == 3


async def test_a_file_that_can_not_be_removed_is_tried_again(state: State) -> None:
    await state.add_trail(3, keep_models=1)
    state.blobs.stuck = True
    await state.retain()
    assert state.files() == 7
    state.blobs.stuck = False
    await Retention(state.journal, FolderBlobs(state.blobs), 0).remove_files()
    assert state.files() == 3


async def test_others_can_write_between_some_removals_and_the_next(state: State) -> None:
    async with state.database.write() as tx:
        tx.add_all(RemovalRow(digest=state.put(f"old {number}")) for number in range(35))
    seen: set[int] = set()

    async def write() -> None:
        while state.files():
            async with state.database.write():
                seen.add(state.files())

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        await Retention(state.journal, FolderBlobs(state.blobs), 0).remove_files()
    assert seen & {25, 15, 5}


@pytest.mark.parametrize("number", [9, 10, 25])
async def test_of_files_that_can_not_be_removed_each_is_tried_once_a_time(state: State, number: int) -> None:
    digests = {state.put(f"old {each}") for each in range(number)}
    async with state.database.write() as tx:
        tx.add_all(RemovalRow(digest=digest) for digest in digests)
    state.blobs.stuck = True
    retention = Retention(state.journal, FolderBlobs(state.blobs), 0)
    await retention.remove_files()
    assert (state.blobs.asked, state.files()) == (number, number)
    state.blobs.stuck = False
    await retention.remove_files()
    async with state.database.read() as tx:
        assert not list(await tx.scalars(select(RemovalRow)))
    assert state.files() == 0


async def test_who_pushes_what_is_removed_in_that_moment_is_told_to_push_it_again(state: State) -> None:
    seed = state.folder / "seed.npz"
    write_npz(seed, {"w": np.ones(3)})

    async def body() -> AsyncIterator[bytes]:
        yield seed.read_bytes()

    lasting = FaultyBlobs(state.blobs)
    uploads = Uploads(journal=state.journal, blobs=lasting, max_package_bytes=1 << 20, max_model_bytes=1 << 20)
    lasting.vanishing = 1
    with pytest.raises(Conflict, match="An equal file was removed"):
        await uploads.add_model("default", body())
    assert state.files() == 0
    await uploads.add_model("default", body())
    assert state.files() == 1


async def test_who_asks_for_a_removed_file_is_told_what_there_is(state: State) -> None:
    await state.add_trail(4, keep_models=2)
    await state.retain()
    async with state.database.read() as tx:
        await registry.require_file(tx, await tx.get_one(ModelRow, "mod-4"))
        with pytest.raises(Gone, match="mod-1 was removed at") as caught:
            await registry.require_file(tx, await tx.get_one(ModelRow, "mod-1"))
    assert "mod-4 (round 4), mod-3 (round 3)" in caught.value.hint


def test_buffered_sessions_keep_what_a_late_client_may_have_trained() -> None:
    buffered = SessionConfig(
        rounds=9, strategy="fedbuff", buffer=2, strategy_options={"max_staleness": 4}, keep_models=1
    )
    assert kept_models(buffered, 0) == 5
    assert kept_models(SessionConfig(rounds=9, keep_models=0), 7) == 0
    assert kept_models(SessionConfig(rounds=9), 7) == 7


@given(
    accuracies=st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=False), max_size=12),
    keep=st.integers(1, 14),
    smallest=st.booleans(),
)
def test_laws_of_what_goes(accuracies: list[float | None], keep: int, smallest: bool) -> None:
    models = []
    for number, accuracy in enumerate(accuracies):
        model = model_row(f"mod-{number}", after_s=-number)
        model.metrics = {} if accuracy is None else {"accuracy": accuracy}
        models.append(model)
    rule = StopRule(metric="accuracy", comparison="<" if smallest else ">", threshold=0)
    going = superfluous(models, keep, rule=rule, needed={"mod-7"})
    kept = [model for model in models if model not in going]
    assert kept[:keep] == models[:keep]
    assert len(kept) <= keep + 2
    assert not any(model.id == "mod-7" for model in going)
    finite = [a for a in accuracies if a is not None and a == a]
    if finite:
        best = min(finite) if smallest else max(finite)
        assert any(model.metrics.get("accuracy") == best for model in kept)
