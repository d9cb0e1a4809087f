"""Payloads of many updates: what a combiner makes of those below, and what is refused on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runnel.combiner.domain.outcomes import in_order
from runnel.combiner.folding import Fold
from runnel.common.blobs import digest_file
from runnel.common.errors import BadModel, CorruptData, InvalidInput, RunnelError, TooLarge
from runnel.common.payload_limits import require_fitting_payload
from runnel.common.protocol import (
    AssignmentKey,
    BlobRef,
    Failure,
    Gather,
    NodeKind,
    Outcome,
    PayloadKind,
    Report,
    Work,
)
from runnel.common.tensors import write_npz
from runnel.reducer.domain.session_rules import check_config
from runnel.reducer.domain.values import SessionConfig
from runnel.reducer.engine.reduction import check_payload

pytestmark = pytest.mark.unit

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)
FAILED = Failure(code="exit_status", message="3")

Arrays = Mapping[str, NDArray[Any]]


class Below:
    """What nodes below push, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model.npz"
        write_npz(self.model, {"w": np.zeros(4, np.float32)})
        self._made = 0

    def file(self) -> Path:
        self._made += 1
        return self.folder / f"{self._made}.payload"

    def update(self, client: str, value: float, weight: float = 1.0) -> tuple[Report, Path]:
        path = self.file()
        write_npz(path, {"w": np.full(4, value, np.float32)})
        return self.report(PayloadKind.UPDATE, path, [Outcome(client=client, weight=weight)]), path

    def updates(self, clients: Sequence[Outcome], values: Sequence[float]) -> tuple[Report, Path]:
        path = self.file()
        np.repeat(np.array(values, np.float32), 4).tofile(path)
        return self.report(PayloadKind.UPDATES, path, clients), path

    def report(self, kind: PayloadKind, path: Path, outcomes: Sequence[Outcome]) -> Report:
        weight = sum(outcome.weight for outcome in outcomes if outcome.failure is None)
        ref = digest_file(path)
        return Report(
            key=KEY, order_id="ord-1", outcomes=tuple(outcomes), payload_kind=kind, payload=ref, weight=weight
        )

    def fold(self) -> Fold:
        return Fold(self.file(), Gather.UPDATES)


def values_of(path: Path) -> list[float]:
    return [float(value) for value in np.fromfile(path, "<f4")[::4]]


# ---- the combiner


async def test_updates_stand_in_the_order_of_their_clients(tmp_path: Path) -> None:
    below = Below(tmp_path)
    fold = below.fold()
    three = [Outcome(client="x"), Outcome(client="bad", failure=FAILED), Outcome(client="y"), Outcome(client="z")]
    for report, path in (below.update("b", 1), below.updates(three, [7, 8, 9]), below.update("a", 2)):
        await fold.add(report, path, "somebody", model=below.model)
    source = await fold.finish()
    assert isinstance(source, Path)
    assert fold.clients == ["b", "x", "y", "z", "a"]
    assert values_of(source) == [1, 7, 8, 9, 2]
    assert source.stat().st_size == 5 * 16
    await fold.drop()
    assert not source.exists()


@pytest.mark.parametrize("gather", list(Gather))
async def test_what_came_within_reports_is_folded_like_files_and_together(tmp_path: Path, gather: Gather) -> None:
    below = Below(tmp_path)
    alike = {}
    for within in (False, True):
        fold = Fold(below.file(), gather)
        report, bad = below.update("bad", float("nan"))
        answers = [below.update("b", 1), (report, bad), below.update("a", 2)]
        async with asyncio.TaskGroup() as group:
            folds = [
                group.create_task(
                    _error_of(fold.add(each, path.read_bytes() if within else path, "somebody", model=below.model))
                )
                for each, path in answers
            ]
        assert [type(task.result()) for task in folds] == [type(None), BadModel, type(None)]
        assert fold.clients == ["b", "a"]
        source = await fold.finish()
        alike[within] = source.read_bytes() if isinstance(source, Path) else bytes(source)
        await fold.drop()
    assert alike[True] == alike[False]


async def _error_of(work: Coroutine[Any, Any, None]) -> Exception | None:
    try:
        await work
    except BadModel as error:
        return error
    return None


def test_outcomes_are_told_in_the_order_of_the_updates() -> None:
    outcomes = {name: Outcome(client=name, failure=FAILED if name == "bad" else None) for name in ("a", "bad", "b")}
    assert [o.client for o in in_order(outcomes, ["b", "a"])] == ["b", "a", "bad"]
    assert [o.client for o in in_order(outcomes, [])] == ["a", "bad", "b"]


@pytest.mark.parametrize(
    "what", ["not finite", "too short", "one too few", "a sum", "two of one", "no weight", "another shape"]
)
async def test_what_is_bad_leaves_nothing_behind(tmp_path: Path, what: str) -> None:
    below = Below(tmp_path)
    fold = below.fold()
    await fold.add(*below.update("a", 1), "a", model=below.model)
    two = [Outcome(client="x"), Outcome(client="y")]
    report, path = below.updates(two, [2, np.inf if what == "not finite" else 3])
    match what:
        case "too short":
            path.write_bytes(path.read_bytes()[:-4])
        case "one too few":
            report = below.report(PayloadKind.UPDATES, path, [*two, Outcome(client="z")])
        case "a sum":
            report = below.report(PayloadKind.WEIGHTED_SUM, path, two)
        case "two of one":
            _, path = below.update("x", 2)
            report = below.report(PayloadKind.UPDATE, path, two)
        case "no weight":
            report, path = below.update("x", 2, weight=0.0)
        case "another shape":
            write_npz(path, {"w": np.zeros((2, 2), np.float32)})
            report = below.report(PayloadKind.UPDATE, path, two[:1])
    with pytest.raises(RunnelError) as caught:
        await fold.add(report, path, "mallory", model=below.model)
    assert isinstance(caught.value, BadModel | InvalidInput)
    assert fold.clients == ["a"]
    await fold.add(*below.update("b", 4), "b", model=below.model)
    source = await fold.finish()
    assert isinstance(source, Path)
    assert values_of(source) == [1, 4]
    await fold.drop()


async def test_an_order_for_a_sum_takes_no_updates_of_a_combiner(tmp_path: Path) -> None:
    below = Below(tmp_path)
    fold = Fold(below.file(), Gather.SUM)
    report, path = below.updates([Outcome(client="x")], [1])
    with pytest.raises(BadModel, match="expected was weighted_sum"):
        await fold.add(report, path, "c1", model=below.model)


# ---- the reducer


async def test_the_reducer_takes_updates_where_it_asked_for_them(tmp_path: Path) -> None:
    below = Below(tmp_path)
    report, path = below.updates([Outcome(client="x"), Outcome(client="bad", failure=FAILED)], [1])
    assert await check_payload(report, "c1", path, below.model, Gather.UPDATES) == report
    with pytest.raises(CorruptData, match="expected was weighted_sum"):
        await check_payload(report, "c1", path, below.model, Gather.SUM)
    np.ones(4).tofile(path)
    total = below.report(PayloadKind.WEIGHTED_SUM, path, [Outcome(client="x")])
    assert await check_payload(total, "c1", path, below.model, Gather.SUM) == total
    with pytest.raises(CorruptData, match="expected was updates"):
        await check_payload(total, "c1", path, below.model, Gather.UPDATES)
    alone, path = below.update("x", 1)
    for gather in Gather:
        assert await check_payload(alone, "x", path, below.model, gather) == alone


@pytest.mark.parametrize("what", ["not finite", "too long", "no weight"])
async def test_a_bad_payload_of_a_combiner_is_refused_whole(tmp_path: Path, what: str) -> None:
    below = Below(tmp_path)
    two = [Outcome(client="x"), Outcome(client="y", weight=0.0 if what == "no weight" else 1.0)]
    report, path = below.updates(two, [1, np.nan if what == "not finite" else 2, *([3] if what == "too long" else [])])
    with pytest.raises((BadModel, InvalidInput)) as caught:
        await check_payload(report, "c1", path, below.model, Gather.UPDATES)
    assert caught.value.fields["source"] == ("y" if what == "no weight" else "c1")


# ---- sizes


@pytest.mark.parametrize(
    ("kind", "gather", "clients", "most"),
    [
        (NodeKind.CLIENT, Gather.SUM, 1, 110),
        (NodeKind.CLIENT, Gather.UPDATES, 1, 110),
        (NodeKind.COMBINER, Gather.SUM, 5, 810),
        (NodeKind.COMBINER, Gather.UPDATES, 1, 110),
        (NodeKind.COMBINER, Gather.UPDATES, 5, 550),
    ],
)
def test_how_much_may_be_pushed(kind: NodeKind, gather: Gather, clients: int, most: int) -> None:
    model = BlobRef(sha256="0" * 64, size_bytes=100)

    def push(size_bytes: int) -> None:
        require_fitting_payload(
            BlobRef(sha256="1" * 64, size_bytes=size_bytes),
            source="n",
            kind=kind,
            gather=gather,
            model=model,
            clients=clients,
            overhead_bytes=10,
        )

    push(most)
    with pytest.raises(TooLarge, match=f"at most {most} are taken"):
        push(most + 1)


# ---- the session


@pytest.mark.parametrize(
    ("strategy", "options", "least"),
    [("krum", {"f": 2.0}, 7), ("bulyan", {}, 7), ("trimmed_mean", {}, 5), ("multi_krum", {"m": 4.0}, 7)],
)
def test_a_session_has_to_want_as_many_updates_as_its_rule_needs(
    strategy: str, options: dict[str, float], least: int
) -> None:
    config = SessionConfig(rounds=1, strategy=strategy, strategy_options=options, min_clients=least)
    check_config(config)
    with pytest.raises(InvalidInput, match=f"{least} or more for the strategy {strategy}") as caught:
        check_config(SessionConfig(rounds=1, strategy=strategy, strategy_options=options, min_clients=least - 1))
    assert caught.value.fields["field"] == "min_clients"
