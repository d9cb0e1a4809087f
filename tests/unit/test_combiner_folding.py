"""In which steps a combiner folds the updates that wait."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.combiner.folding import Fold
from runnel.common.aggregation import WeightedSum
from runnel.common.blobs import digest_file
from runnel.common.protocol import AssignmentKey, Outcome, PayloadKind, Report, Work
from runnel.common.tensors import NpzModel, write_npz
from runnel.transport import SMALL_BYTES

pytestmark = pytest.mark.unit

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)
HELD = 3.0


class Held:
    """Has the update of the weight :data:`HELD` wait in its thread; ``sizes``: how many each way to a thread folded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.sizes: list[int] = []
        add, add_all = WeightedSum.add, Fold._add_all

        def held(total: WeightedSum, update: NpzModel, weight: float) -> None:
            if weight == HELD:
                self.go_on.wait(30)
            add(total, update, weight)

        def counted(fold: Fold, batch: Any) -> None:
            self.sizes.append(len(batch))
            add_all(fold, batch)

        monkeypatch.setattr(WeightedSum, "add", held)
        monkeypatch.setattr(Fold, "_add_all", counted)


def answer(folder: Path, client: str, weight: float, params: int) -> tuple[Report, Path]:
    path = folder / f"{client}.npz"
    write_npz(path, {"w": np.full(params, weight, np.float32)})
    report = Report(
        key=KEY,
        order_id="ord-1",
        outcomes=(Outcome(client=client, weight=weight),),
        payload_kind=PayloadKind.UPDATE,
        payload=digest_file(path),
        weight=weight,
    )
    return report, path


async def folding(folder: Path, params: int, *weights: float) -> tuple[Fold, list[asyncio.Task[None]]]:
    """Have updates come at once, in this order."""
    model = folder / "model.npz"
    write_npz(model, {"w": np.zeros(params, np.float32)})
    fold = Fold(folder / "ord-1.sum")
    tasks = []
    for number, weight in enumerate(weights):
        report, path = answer(folder, f"client-{number}", weight, params)
        tasks.append(asyncio.create_task(fold.add(report, path, f"client-{number}", model=model)))
    await asyncio.sleep(0)
    return fold, tasks


async def test_the_file_of_a_large_update_waits_for_none_that_came_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    fold, tasks = await folding(tmp_path, SMALL_BYTES // 4, 1.0, 2.0, HELD)
    try:
        done, _ = await asyncio.wait(tasks[:2], timeout=20)
        assert done == set(tasks[:2])
        assert not tasks[2].done()
    finally:
        held.go_on.set()
        await asyncio.gather(*tasks)
    assert fold.clients == ["client-0", "client-1", "client-2"]
    assert held.sizes == [1, 1, 1]
    await fold.drop()


async def test_small_updates_that_wait_are_folded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    fold, tasks = await folding(tmp_path, 4, HELD, 1.0, 2.0)
    held.go_on.set()
    await asyncio.gather(*tasks)
    assert fold.clients == ["client-0", "client-1", "client-2"]
    assert held.sizes == [1, 2]
    await fold.drop()
