"""kill -9 of the reducer when a package has chosen the clients of a round and none of them has been asked."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.common.crash_points import CrashPoint
from runnel.compute_package import pack
from tests.chaos.adding_network import SIZE, TRAIN, VALIDATE, AddingNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

# Whom it chooses depends on the time, so nobody could choose the same again; it counts how often it was asked.
SERVER = """
import time

class ServerFunctions:
    def __init__(self):
        self.asked = 0

    def client_selection(self, client_ids):
        self.asked += 1
        left_out = time.time_ns() // 1000 % len(client_ids)
        return [name for number, name in enumerate(client_ids) if number != left_out]

    def client_settings(self, global_model):
        return {"chosen_at": time.time_ns(), "asked": self.asked}

    def aggregate(self, previous_global, client_updates):
        models = [model for model, _ in client_updates.values()]
        return [sum(each) / len(each) for each in zip(*models)]
"""


def rows(database: Path, query: str, session: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as read:
        return read.execute(query, (session,)).fetchall()


CHOSEN = "SELECT round, client FROM slot WHERE session_id = ? AND work = 'train' ORDER BY round, client"
SETTINGS = "SELECT client_settings FROM round WHERE session_id = ? ORDER BY number"


def test_the_clients_that_were_chosen_are_asked_with_the_settings_of_then(network: AddingNetwork) -> None:
    folder = network.folder / "choosing"
    folder.mkdir()
    for name, text in {"train": TRAIN, "validate": VALIDATE, "server": SERVER}.items():
        (folder / f"{name}.py").write_text(text)
    package = network.sdk.packages.push(pack(folder, network.folder / "choosing.tar.gz").path).digest
    seed = network.work()[1]
    network.crash("reducer", CrashPoint.SLOTS_STORED)
    session = network.start_session((package, seed), 2, min_clients=2, validate_every=0)
    assert network.until_dead("reducer", timeout_s=60) == -signal.SIGKILL
    database = network.folder / "reducer" / "reducer.db"
    before, said = rows(database, CHOSEN, session), rows(database, SETTINGS, session)
    assert [number for number, _ in before] == [1, 1]
    network.relaunch("reducer")
    ended = network.until_ended(session, 60)
    assert ended["status"] == "finished", ended["reason"]
    after, told = rows(database, CHOSEN, session), rows(database, SETTINGS, session)
    assert (after[:2], told[:1]) == (before, said)
    assert [f'"asked": {number}' in text for number, (text,) in enumerate(told, 1)] == [True, True]
    ran = []
    for name in network.steps:
        path = network.folder / f"{name}.txt.runs"
        lines = path.read_text().splitlines() if path.exists() else []
        ran += [(int(line.split()[1]), name) for line in lines if line.startswith(session)]
    assert sorted(ran) == after
    target = network.folder / "got.npz"
    network.sdk.models.get(str(ended["model"]), target)
    gain = sum(network.steps[name] / 2 for _, name in after)
    with np.load(target) as model:
        np.testing.assert_array_equal(model["w"] - np.arange(SIZE), np.full(SIZE, gain))
    network.require_nothing_held()
