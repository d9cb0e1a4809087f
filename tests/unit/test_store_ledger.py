"""Sessions and the ledger in which an update counts once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from runnel.common.errors import Conflict, IllegalState, NotFound
from runnel.common.protocol import (
    AssignmentKey,
    BlobRef,
    Failure,
    LogLine,
    LogLines,
    Outcome,
    PayloadKind,
    Report,
    Work,
)
from runnel.reducer.domain.values import SessionConfig, SessionStatus, StopRule
from runnel.reducer.store import ledger, registry
from runnel.reducer.store.database import Database
from runnel.reducer.store.tables import LogRow, RoundRow
from tests.doubles.reducer_state import START, add_session, database_in, model_row

pytestmark = pytest.mark.unit

SESSION = "ses-aaaaaaaaaa"
TRAIN = AssignmentKey(session_id=SESSION, round=1, work=Work.TRAIN)
VALIDATE = AssignmentKey(session_id=SESSION, round=1, work=Work.VALIDATE)


async def begin(database: Database, *clients: str) -> None:
    async with database.write() as tx:
        await add_session(tx, SESSION, round_number=1, phase=SessionStatus.TRAINING)
        await ledger.open_slots(tx, TRAIN, clients)


async def states(database: Database, key: AssignmentKey = TRAIN) -> dict[str, str]:
    async with database.read() as tx:
        return {row.client: row.state for row in await ledger.slots(tx, key)}


async def note(database: Database, *outcomes: Outcome, order_id: str = "ord-1", key: AssignmentKey = TRAIN) -> None:
    async with database.write() as tx:
        await ledger.note_outcomes(tx, key, order_id, outcomes)


# ---- the config as JSON

configs = st.builds(
    SessionConfig,
    rounds=st.integers(1, 1000),
    strategy=st.sampled_from(["fedavg", "fedadam"]),
    strategy_options=st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False), max_size=2),
    min_clients=st.integers(1, 9),
    sample=st.one_of(st.none(), st.floats(0.01, 1.0), st.integers(1, 50)),
    buffer=st.one_of(st.none(), st.integers(1, 50)),
    round_timeout_s=st.floats(0.1, 1e6),
    retries=st.integers(0, 5),
    validate_every=st.integers(0, 3),
    stop_when=st.one_of(
        st.none(),
        st.builds(
            StopRule,
            metric=st.text(max_size=5),
            comparison=st.sampled_from([">=", ">", "<=", "<"]),
            threshold=st.floats(allow_nan=False, allow_infinity=False),
        ),
    ),
    client_settings=st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(), st.none()), max_size=3),
    random_seed=st.one_of(st.none(), st.integers(0, 2**63 - 1)),
)


@given(configs)
def test_a_config_is_read_as_it_was_written(config: SessionConfig) -> None:
    again = ledger.config_from_json(ledger.config_to_json(config))
    assert again == config
    assert type(again.sample) is type(config.sample), "a count is not a fraction"


@pytest.mark.usefixtures("each_database")
async def test_a_config_survives_the_database(tmp_path: Path) -> None:
    config = SessionConfig(
        rounds=7,
        sample=1,
        stop_when=StopRule(metric="accuracy", comparison=">=", threshold=0.97),
        client_settings={"lr": 0.1, "nested": {"é": [1, None, True]}},
        random_seed=2**63 - 1,
    )
    async with database_in(tmp_path) as database:
        async with database.write() as tx:
            await add_session(tx, SESSION, config=config)
        async with database.read() as tx:
            view = ledger.session_view(await ledger.require_session(tx, SESSION))
    assert view.config == config
    assert isinstance(view.config.sample, int)
    assert (view.created_at, view.status, view.phase) == (START, "running", SessionStatus.SEEDED)


# ---- an update counts once


@pytest.mark.usefixtures("each_database")
async def test_what_a_client_gave_is_kept_as_it_came(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        await begin(database, "a", "b", "c")
        await note(
            database,
            Outcome(client="a", weight=12.0, metrics={"loss": 0.5}, extra_json='{"k": [1]}', elapsed_s={"run": 2.0}),
            Outcome(client="b", failure=Failure(code="exit_status", message="3", log_tail="Traceback")),
        )
        async with database.read() as tx:
            a, b, c = ledger.contributions(await ledger.slots(tx, TRAIN))
    assert (a.client, a.work, a.status, a.weight) == ("a", "train", "counted", 12.0)
    assert (a.metrics, a.extra, a.elapsed_s) == ({"loss": 0.5}, {"k": [1]}, {"run": 2.0})
    assert (b.status, b.weight, b.error_code, b.error, b.log_tail) == ("failed", None, "exit_status", "3", "Traceback")
    assert (c.status, c.weight, c.error) == ("open", None, None)


@pytest.mark.parametrize(
    ("text", "kept"),
    [("", {}), ("[1]", {"value": [1]}), ("3", {"value": 3}), ("{oops", {"text": "{oops"}), ('{"a": 1}', {"a": 1})],
)
@pytest.mark.usefixtures("each_database")
async def test_what_is_no_object_is_kept_too(tmp_path: Path, text: str, kept: object) -> None:
    async with database_in(tmp_path) as database:
        await begin(database, "a")
        await note(database, Outcome(client="a", extra_json=text))
        async with database.read() as tx:
            (row,) = await ledger.slots(tx, TRAIN)
    assert row.extra == kept


@pytest.mark.parametrize(
    "outcomes",
    [
        [Outcome(client="b"), Outcome(client="a")],
        [Outcome(client="a", failure=Failure(code="timeout", message="late"))],
        [Outcome(client="b"), Outcome(client="b")],
    ],
    ids=["with another", "as a failure", "a new one twice"],
)
@pytest.mark.usefixtures("each_database")
async def test_nobody_counts_twice_and_then_nothing_of_the_report_does(tmp_path: Path, outcomes: list[Outcome]) -> None:
    async with database_in(tmp_path) as database:
        await begin(database, "a", "b")
        await note(database, Outcome(client="a", weight=5.0))
        with pytest.raises(IllegalState, match="counted already") as caught:
            await note(database, *outcomes, order_id="ord-2")
        assert caught.value.fields["order_id"] == "ord-2"
        assert await states(database) == {"a": "counted", "b": "open"}


@pytest.mark.usefixtures("each_database")
async def test_who_was_not_asked_does_not_count(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        await begin(database, "a")
        with pytest.raises(IllegalState, match="x is not asked"):
            await note(database, Outcome(client="a"), Outcome(client="x"))
        with pytest.raises(IllegalState, match="not asked"):
            await note(database, Outcome(client="a"), key=VALIDATE)
        assert await states(database) == {"a": "open"}


@pytest.mark.usefixtures("each_database")
async def test_a_failure_may_be_made_good(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        await begin(database, "a")
        await note(database, Outcome(client="a", failure=Failure(code="timeout", message="late", log_tail="…")))
        async with database.write() as tx:
            await ledger.open_slots(tx, TRAIN, ["a"])
        async with database.read() as tx:
            (row,) = await ledger.slots(tx, TRAIN)
            assert (row.state, row.error_code, row.error, row.log_tail) == ("open", None, None, None)
        await note(database, Outcome(client="a", weight=2.0))
        assert await states(database) == {"a": "counted"}


@pytest.mark.usefixtures("each_database")
async def test_opening_again_leaves_what_is_counted(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        await begin(database, "a", "b")
        await note(database, Outcome(client="a"))
        async with database.write() as tx:
            await ledger.mark_late(tx, TRAIN)
        assert await states(database) == {"a": "counted", "b": "late"}
        async with database.write() as tx:
            await ledger.open_slots(tx, TRAIN, ["a", "b", "c"])
        assert await states(database) == {"a": "counted", "b": "open", "c": "open"}


@pytest.mark.usefixtures("each_database")
async def test_late_are_those_of_this_phase_who_have_not_answered(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        await begin(database, "a", "b", "c")
        async with database.write() as tx:
            await ledger.open_slots(tx, VALIDATE, ["a"])
        await note(database, Outcome(client="a"), Outcome(client="b", failure=Failure(code="timeout", message="")))
        async with database.write() as tx:
            await ledger.mark_late(tx, TRAIN)
        assert await states(database) == {"a": "counted", "b": "failed", "c": "late"}
        assert await states(database, VALIDATE) == {"a": "open"}
        async with database.read() as tx:
            assert await ledger.slot_state(tx, TRAIN, "c") == "late"
            assert await ledger.slot_state(tx, TRAIN, "x") is None
            view = await ledger.one_round(tx, SESSION, 1)
        assert (view.updates, view.failed, view.late) == (1, 1, 1), "of training alone"


# ---- payloads


def report(order_id: str, round_number: int = 1) -> Report:
    return Report(
        key=AssignmentKey(session_id=SESSION, round=round_number, work=Work.TRAIN),
        order_id=order_id,
        outcomes=(Outcome(client="a"),),
        payload_kind=PayloadKind.WEIGHTED_SUM,
        payload=BlobRef(sha256="0" * 64, size_bytes=1),
        weight=3.5,
    )


@pytest.mark.usefixtures("each_database")
async def test_payloads_are_reduced_in_an_order_that_does_not_depend_on_their_arrival(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        await begin(database)
        async with database.write() as tx:
            for order_id in ("ord-c", "ord-a", "ord-b"):
                await ledger.add_partial(tx, report(order_id), "m1", f"{order_id}.payload")
            await ledger.add_partial(tx, report("ord-z", 2), "m1", "z.payload")
        async with database.write() as tx:
            rows = await ledger.partials(tx, SESSION, 1)
            assert [(r.order_id, r.kind, r.weight, r.child) for r in rows] == [
                (f"ord-{c}", "weighted_sum", 3.5, "m1") for c in "abc"
            ]
            wanted = {"ord-a.payload", "ord-b.payload", "ord-c.payload", "z.payload"}
            assert await ledger.all_partial_files(tx) == wanted
            await ledger.drop_partials(tx, SESSION, 1)
            assert await ledger.all_partial_files(tx) == {"z.payload"}


@pytest.mark.usefixtures("each_database")
async def test_what_was_buffered_for_a_round_that_will_not_be_is_late_and_part_of_nothing(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        await begin(database, "a", "b")
        async with database.write() as tx:
            for client, order_id, counted_in in (("a", "ord-1", 1), ("b", "ord-2", 2)):
                await ledger.note_outcomes(tx, TRAIN, order_id, [Outcome(client=client)], counted_in)
                await ledger.add_partial(tx, report(order_id), "m1", f"{order_id}.payload", counted_in)
            assert await ledger.drop_spare(tx, SESSION, 2) == []
            assert await ledger.drop_spare(tx, SESSION, 1) == ["ord-2.payload"]
        assert await states(database) == {"a": "counted", "b": "late"}
        async with database.read() as tx:
            assert [row.filename for row in await ledger.partials(tx, SESSION, 1)] == ["ord-1.payload"]
            assert await ledger.partials(tx, SESSION, 2) == []
            assert await ledger.all_partial_files(tx) == {"ord-1.payload"}


@pytest.mark.parametrize(
    ("phase", "counted_in"),
    [
        (SessionStatus.SELECTING, 1),
        (SessionStatus.TRAINING, 1),
        (SessionStatus.REDUCING, 2),
        (SessionStatus.VALIDATING, 2),
        (SessionStatus.COMMITTED, 2),
    ],
)
@pytest.mark.usefixtures("each_database")
async def test_a_buffered_update_counts_in_the_round_that_still_takes_one(
    tmp_path: Path, phase: SessionStatus, counted_in: int
) -> None:
    async with database_in(tmp_path) as database:
        async with database.write() as tx:
            await add_session(tx, SESSION, round_number=1, phase=phase)
        async with database.read() as tx:
            assert await ledger.counting_round(tx, SESSION) == counted_in


@pytest.mark.usefixtures("each_database")
async def test_a_round_that_begins_anew_has_nothing_of_before(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        await begin(database, "a")
        await note(database, Outcome(client="a"))
        async with database.write() as tx:
            await ledger.add_partial(tx, report("ord-1"), "m1", "x")
            assert await ledger.forget_round(tx, SESSION, 1) == ["x"]
        async with database.read() as tx:
            assert await ledger.slots(tx, TRAIN) == []
            assert await ledger.partials(tx, SESSION, 1) == []
            assert await tx.get(RoundRow, (SESSION, 1)) is None


@pytest.mark.usefixtures("each_database")
async def test_a_round_with_its_model_keeps_what_came_for_the_next(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        await begin(database, "a")
        async with database.write() as tx:
            await ledger.add_partial(tx, report("ord-1"), "m1", "x", counted_in=2)
            (await tx.get_one(RoundRow, (SESSION, 1))).model_id = "mod-aaaaaaaaaa"
        async with database.write() as tx:
            assert await ledger.drop_unmade(tx, SESSION, 1) == []
            (await tx.get_one(RoundRow, (SESSION, 1))).model_id = None
        async with database.write() as tx:
            assert await ledger.drop_unmade(tx, SESSION, 1) == ["x"]
            assert await ledger.all_partial_files(tx) == set()


# ---- sessions


@pytest.mark.usefixtures("each_database")
async def test_running_are_those_that_have_not_ended(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        for number, phase in enumerate(SessionStatus):
            await add_session(tx, f"ses-{number:010}", phase=phase, after_s=-number)
        running = [f"ses-{n:010}" for n, phase in reversed(list(enumerate(SessionStatus))) if not phase.ended]
        assert await ledger.running_sessions(tx) == running, "oldest first"


@pytest.mark.usefixtures("each_database")
async def test_a_session_is_shown_with_its_rounds_and_who_gave_what(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database:
        await begin(database, "b", "a")
        await note(database, Outcome(client="a", weight=2.0))
        async with database.read() as tx:
            row = await ledger.require_session(tx, SESSION)
            bare = await ledger.session_with_rounds(tx, row, clients=False)
            full = await ledger.session_with_rounds(tx, row, clients=True)
            with pytest.raises(IllegalState, match="ses-none"):
                await ledger.require_session(tx, "ses-none")
    assert [r.clients for r in bare.rounds] == [()]
    assert [(c.client, c.status) for c in full.rounds[0].clients] == [("a", "counted"), ("b", "open")]
    assert (full.rounds[0].updates, full.rounds[0].round) == (1, 1)


# ---- by prefix


@pytest.mark.usefixtures("each_database")
async def test_a_prefix_finds_the_only_one(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        for name in ("ses-abc1234567", "ses-abd1234567"):
            await add_session(tx, name)
        await add_session(tx, "ses-north12345", organisation="north")
        assert (await ledger.find_session(tx, "default", "ses-abc1234567")).id == "ses-abc1234567"
        assert (await ledger.find_session(tx, "default", "ses-abc")).id == "ses-abc1234567"
        with pytest.raises(Conflict, match="More than one session starts with 'ses-ab'"):
            await ledger.find_session(tx, "default", "ses-ab")
        for missing in ("ses-x", "abc", "", "ses", "%", "ses-%", "ses_abc", "ses-abc\\", "SES-ABC", "ses-north12345"):
            with pytest.raises(NotFound, match="There is no session"):
                await ledger.find_session(tx, "default", missing)


@pytest.mark.usefixtures("each_database")
async def test_a_whole_id_is_found_beside_longer_ones(tmp_path: Path) -> None:
    async with database_in(tmp_path) as database, database.write() as tx:
        await add_session(tx, SESSION)
        tx.add_all([model_row("mod-1"), model_row("mod-12")])
        await tx.flush()
        assert (await registry.find_model(tx, "default", "mod-1")).id == "mod-1"


# ---- logs


@pytest.mark.usefixtures("each_database")
async def test_a_clock_that_is_far_off_does_no_harm(tmp_path: Path) -> None:
    odd = tuple(LogLine(at_ms=at, stream="stdout", text="x\x00é") for at in (0, 1 << 62, (1 << 64) - 1))
    async with database_in(tmp_path) as database:
        async with database.write() as tx:
            await ledger.add_log(tx, LogLines(key=TRAIN, client="a", lines=odd))
        async with database.read() as tx:
            page = await ledger.logs(tx, SESSION, None, None, None, 9)
    assert [line.at.year for line in page.items] == [1970, 9999, 9999]


@pytest.mark.usefixtures("each_database")
async def test_lines_that_no_database_likes_are_kept_in_order(tmp_path: Path) -> None:
    texts = ["nul \0 inside", "wörter ☃ 𝄞", "", "x" * 100_000]
    lines = tuple(LogLine(at_ms=1_700_000_000_000 + n, stream="stdout", text=line) for n, line in enumerate(texts))
    async with database_in(tmp_path) as database:
        async with database.write() as tx:
            await ledger.add_log(tx, LogLines(key=TRAIN, client="site-1", lines=lines))
        async with database.read() as tx:
            page = await ledger.logs(tx, SESSION, None, None, None, 10)
            rows = list(await tx.scalars(select(LogRow).order_by(LogRow.id)))
        assert [line.text for line in page.items] == ["nul \ufffd inside", *texts[1:]]
        assert [row.text for row in rows] == [line.text for line in page.items]
