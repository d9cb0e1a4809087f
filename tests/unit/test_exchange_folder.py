"""Files that people drop in a folder and find beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runnel.client.tasks.exchange_folder import RESULT, ExchangeFolder
from runnel.common.errors import InvalidInput, NotFound
from runnel.common.protocol import BlobRef
from runnel.common.tasks import Contract

pytestmark = pytest.mark.unit

JOB = {"id": 7, "image": "a/b:1", "runId": 10, "input": "echo hi"}


@pytest.fixture
def exchange(tmp_path: Path) -> ExchangeFolder:
    made = ExchangeFolder(tmp_path / "jobs", tmp_path / "jobs_output", tmp_path / "inputs")
    made.prepare()
    return made


def drop(exchange: ExchangeFolder, name: str, content: object) -> Path:
    path = exchange.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_is_taken_when_it_has_stopped_changing(exchange: ExchangeFolder) -> None:
    path = drop(exchange, "sub/a.ptmjob", JOB)
    drop(exchange, "notes.txt", "not for us")
    (exchange.folder / "link.ptmjob").symlink_to("/etc/passwd")
    assert exchange.look().jobs == ()
    assert exchange.look().jobs == (path,)
    path.write_text(json.dumps(JOB) + " ")
    assert exchange.look().jobs == ()
    image = drop(exchange, "b.dockerimage", "begins")
    assert exchange.look().images_come
    image.write_text("begins and goes on")
    assert exchange.look().images_come
    found = exchange.look()
    assert (found.images, found.jobs, found.images_come) == ((image,), (path,), False)


def test_a_job_is_what_their_client_took_it_for(exchange: ExchangeFolder) -> None:
    job = exchange.read(drop(exchange, "a.ptmjob", JOB | {"profile": "files", "more": [1]}))
    spec = job.spec()
    assert (spec.contract, spec.group, spec.profile) == (Contract.PYTASKMANAGER, "10", "files")
    assert spec.executors[0].image == "a/b:1"
    assert spec.payload is not None
    assert spec.payload.data == b"echo hi"
    assert exchange.read(drop(exchange, "b.ptmjob", JOB | {"input": None})).text == b""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "should be JSON"),
        ("[]", "no job"),
        ({"image": "a", "input": ""}, "runId"),
        (JOB | {"image": 3}, "image"),
        (JOB | {"input": ["x"]}, "input"),
        (JOB | {"input": "\ud800"}, "should be JSON"),
    ],
)
def test_what_is_no_job_is_named(exchange: ExchangeFolder, content: object, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        exchange.read(drop(exchange, "a.ptmjob", content))


def test_each_file_that_is_dropped_is_one_run(exchange: ExchangeFolder) -> None:
    path = drop(exchange, "a.ptmjob", JOB)
    first = exchange.run_id(path)
    assert exchange.run_id(path) == first
    assert exchange.still_there("a.ptmjob", first) == path
    exchange.file_away(path)
    assert exchange.still_there("a.ptmjob", first) is None
    again = drop(exchange, "a.ptmjob", JOB)
    os.utime(again, ns=(0, path.stat().st_mtime_ns if path.exists() else 1))
    assert exchange.run_id(again) != first
    assert exchange.still_there("a.ptmjob", first) is None
    exchange.file_away(again)
    exchange.file_away(again)  # somebody took it back
    assert sorted(each.name for each in exchange.history.iterdir()) == ["a.2.ptmjob", "a.ptmjob"]


def test_results_appear_whole_and_once(exchange: ExchangeFolder, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("output")
    files = {"output": ("text/plain; charset=utf-8", source), "files": ("application/zip", source)}
    where = exchange.publish("sub/../a b.ptmjob", "run-1", {"state": "done"}, files)
    assert where == exchange.output / "a_b"
    assert sorted(each.name for each in where.iterdir()) == ["files.zip", "output.txt", RESULT]
    assert json.loads((where / RESULT).read_text()) == {
        "run": "run-1",
        "job": "sub/../a b.ptmjob",
        "state": "done",
        "files": {"output": "output.txt", "files": "files.zip"},
    }
    source.write_text("another")
    assert exchange.publish("a b.ptmjob", "run-1", {"state": "failed"}, files) == where
    assert (where / "output.txt").read_text() == "output"
    other = exchange.publish("a b.ptmjob", "run-2", {"state": "done"}, files)
    assert other == exchange.output / "a_b-run-2"
    assert exchange.publish("a b.ptmjob", "run-2", {"state": "done"}, files) == other
    assert exchange.publish("...ptmjob", "run-3", {}, {}).parent == exchange.output
    (exchange.output / ".run-4.part").mkdir()
    exchange.prepare()
    assert not (exchange.output / ".run-4.part").exists()


def test_large_inputs_are_kept_as_long_as_somebody_needs_them(exchange: ExchangeFolder, tmp_path: Path) -> None:
    small = exchange.read(drop(exchange, "a.ptmjob", JOB))
    assert exchange.store(small) is None
    large = exchange.read(drop(exchange, "b.ptmjob", JOB | {"input": "x" * 70_000}))
    stored = exchange.store(large)
    assert stored is not None
    assert large.spec(stored).payload is not None
    ref = BlobRef(sha256=stored.sha256, size_bytes=stored.size_bytes)
    exchange.keep_inputs({stored.sha256})
    exchange.fetch(ref, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"x" * 70_000
    exchange.keep_inputs(set())
    with pytest.raises(NotFound):
        exchange.fetch(ref, tmp_path / "target")
