"""A site's audit log: whole after any kill, and broken for everybody to see when somebody has changed it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.client.audit import AuditLog
from runnel.client.audited_runs import AuditedRuns
from runnel.client.domain.audit_chain import FIRST, following
from runnel.client.runtimes import Call, Finished, LineSink, PackageFiles, Prepared
from runnel.common.errors import CorruptData, EntryPointFailed, StorageFull
from runnel.compute_package import read_manifest
from tests.doubles.client_packages import ADD_ONE, MEASURE, write_package

pytestmark = pytest.mark.unit

NOW = datetime(2026, 3, 2, 12, 0, 0, 123456, tzinfo=UTC)


def log_at(path: Path) -> AuditLog:
    ticks = iter(range(1 << 30))
    return AuditLog(path, clock=lambda: NOW + timedelta(seconds=next(ticks)))


def written(folder: Path, number: int = 5) -> AuditLog:
    log = log_at(folder / "audit.jsonl")
    for each in range(number):
        log.append("run.started", {"run": each, "name": "ä\n"})
    return log


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    log = log_at(tmp_path / "audit.jsonl")
    made = [log.append("run.started", {"run": each}, durable=bool(each % 2)) for each in range(5)]
    assert list(log.records()) == made
    assert [each.seq for each in made] == [1, 2, 3, 4, 5]
    assert (made[0].prev, made[1].prev) == (FIRST, made[0].hash)
    assert log.last("run.started") == made[-1]
    assert log.last("other") is None
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert list(AuditLog(tmp_path / "none").records()) == []


def _change(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'"run":2', b'"run":7'), *lines[3:]]


def _rehash(lines: list[bytes]) -> list[bytes]:
    """Change a record as somebody would who knows how its hash is made."""
    before = json.loads(lines[1])
    record = json.loads(_change(lines)[2])
    made = following(None, datetime.fromisoformat(record["at"]), record["kind"], record["data"])
    document = json.loads(made.line()) | {"seq": 3, "prev": before["hash"]}
    del document["hash"]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    changed = document | {"hash": hashlib.sha256(text.encode()).hexdigest()}
    return [*lines[:2], json.dumps(changed, sort_keys=True, separators=(",", ":")).encode() + b"\n", *lines[3:]]


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (_change, "line 3: it was changed"),
        (_rehash, "line 4: record 4 does not follow"),
        (lambda lines: [*lines[:2], *lines[3:]], "line 3: record 4 does not follow"),
        (lambda lines: lines[1:], "line 1: record 2 does not follow"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2: record 3 does not follow"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4: record 3 does not follow"),
        (lambda lines: [*lines[:2], b"what\n", *lines[2:]], "line 3: it is no record"),
        (lambda lines: [*lines[:2], lines[2][:20] + b"\n", *lines[3:]], "line 3: it is no record"),
        (lambda lines: [*lines[:2], b"[]\n", *lines[2:]], "line 3: it is no record"),
    ],
    ids=["changed", "rehashed", "taken out", "first gone", "moved", "doubled", "put in", "cut", "no object"],
)
def test_whatever_was_changed_breaks_the_chain(
    tmp_path: Path, tamper: Callable[[list[bytes]], list[bytes]], told: str
) -> None:
    log = written(tmp_path)
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(tamper(lines)))
    with pytest.raises(CorruptData) as caught:
        list(log.records())
    assert told in str(caught.value)


@given(cut=st.integers(1, 3000))
def test_a_line_that_was_torn_anywhere_is_healed_with_a_note(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = written(tmp_path_factory.mktemp("log"), 3)
    data = log.path.read_bytes()[:-cut] or b"{"
    log.path.write_bytes(data)
    whole = data.count(b"\n")
    torn = len(data) - (data.rfind(b"\n") + 1)
    assert len(list(log.records())) == whole, "what is being written now is no damage"
    log.append("policy.set", {})
    found = list(log.records())
    kinds = ["run.started"] * whole + (["log.healed"] if torn else []) + ["policy.set"]
    assert [each.kind for each in found] == kinds
    if torn:
        assert found[whole].data["bytes"] == torn


def test_nothing_is_added_to_a_log_whose_end_was_changed(tmp_path: Path) -> None:
    log = written(tmp_path)
    data = log.path.read_bytes().replace(b'"run":4', b'"run":5')
    log.path.write_bytes(data)
    with pytest.raises(CorruptData, match="the last line"):
        log.append("run.started", {})
    assert log.path.read_bytes() == data


# ---- runs


class Runs:
    """A runtime that writes ``out`` and two lines, then raises ``error`` if there is one, or goes on for ever."""

    def __init__(self, log: AuditLog) -> None:
        self.log = log
        self.error: Exception | None = None
        self.forever = False
        self.records_at_start = 0

    async def prepare(self, package: PackageFiles, say: LineSink) -> Prepared:
        return Prepared(package=package)

    async def run(self, prepared: Prepared, call: Call, say: LineSink) -> Finished:
        self.records_at_start = await asyncio.to_thread(lambda: len(list(self.log.records())))
        await asyncio.to_thread(Path(call.arguments[-1]).write_bytes, b"12345")
        await asyncio.to_thread(Path(f"{call.arguments[-1]}-metadata").write_bytes, b"{}")
        say("stdout", "åb")
        say("stderr", "c")
        if self.forever:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return Finished(exit_status=0, elapsed_s=0.0, log_tail="")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    root = tmp_path / "package"
    write_package(root, {"train.py": ADD_ONE, "validate.py": MEASURE})
    return Prepared(package=PackageFiles(digest="ab" * 32, root=root, manifest=read_manifest(root)))


async def run(runs: Runs, prepared: Prepared, folder: Path) -> None:
    call = Call(entry_point="train", arguments=(str(folder / "in"), str(folder / "out")), workdir=folder, env={})
    audited = AuditedRuns(runs, runs.log, {"session": "ses-1"})
    await audited.run(await audited.prepare(prepared.package, lambda *_: None), call, lambda *_: None)


async def test_a_run_is_on_record_before_it_begins_and_when_it_has_ended(tmp_path: Path, prepared: Prepared) -> None:
    runs = Runs(log_at(tmp_path / "audit.jsonl"))
    await run(runs, prepared, tmp_path)
    assert runs.records_at_start == 1
    started, ended = runs.log.records()
    assert (started.kind, started.data["session"], started.data["entry_point"]) == ("run.started", "ses-1", "train")
    assert ended.data["run"] == started.data["run"]
    assert (ended.data["end"], ended.data["exit_status"]) == ("finished", 0)
    assert ended.data["bytes_out"] == 5 + 2 + len("åb".encode()) + 1 + 2


async def test_how_a_run_ended_is_on_record(tmp_path: Path, prepared: Prepared) -> None:
    runs = Runs(log_at(tmp_path / "audit.jsonl"))
    runs.error = EntryPointFailed("It ended with status 3.", exit_status=3, log_tail="")
    with pytest.raises(EntryPointFailed):
        await run(runs, prepared, tmp_path)
    runs.forever = True
    task = asyncio.create_task(run(runs, prepared, tmp_path))
    while runs.records_at_start != 3:  # noqa: ASYNC110 - the double counts in a thread
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ends = [(each.data["end"], each.data["exit_status"]) for each in runs.log.records() if each.kind == "run.ended"]
    assert ends == [("exit_status", 3), ("called off", None)]


class FullLog(AuditLog):
    """Has no room."""

    def append(self, kind: str, data: object, *, durable: bool = True) -> None:  # type: ignore[override]
        raise StorageFull("No room.")


async def test_nothing_runs_that_could_not_be_written_down(tmp_path: Path, prepared: Prepared) -> None:
    runs = Runs(FullLog(tmp_path / "audit.jsonl"))
    with pytest.raises(StorageFull):
        await run(runs, prepared, tmp_path)
    assert not (tmp_path / "out").exists()
