"""The book of runs: what it says it holds is on the disk, whenever the client is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.client.tasks.book import Ended, RunBook, read_runs, remove_tree
from runnel.client.tasks.contract import Produced
from runnel.common.errors import InvalidInput
from runnel.common.protocol import Failure
from tests.doubles.task_network import order, plain

pytestmark = pytest.mark.unit

ORDER = order("run-1", plain("a"), expires_at_ms=5, parent_run="run-0")


def produced(folder: Path, name: str, data: bytes) -> Produced:
    path = folder / f"made-{name}"
    path.write_bytes(data)
    return Produced(name=name, media_type="text/plain", path=path)


def test_a_run_is_held_through_every_restart_until_it_is_dropped(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    book = RunBook(root)
    assert book.held() == []
    held = book.take(ORDER, now_ms=7)
    assert RunBook(root).held() == [held]
    begun, work = RunBook(root).begin("run-1")
    assert (begun.attempt, list(work.iterdir())) == (1, [])
    (work / "half").write_text("x")
    again, work = RunBook(root).begin("run-1")
    assert (again.attempt, list(work.iterdir())) == (2, [])
    book = RunBook(root)
    files = [produced(tmp_path, "output", b"out"), produced(tmp_path, "log", b"")]
    failure = Failure(code="exit_status", message="It failed.", log_tail="tail")
    ended = Ended(failure=failure, exit_code=3, produced=files, elapsed_s={"run": 1.5}, image_digest="sha256:1")
    done = book.end("run-1", ended)
    assert not work.exists()
    assert RunBook(root).held() == [done] == read_runs(root)
    assert done.result is not None
    assert (done.result.attempt, done.result.exit_code, done.result.failure) == (2, 3, failure)
    assert [book.file("run-1", number).read_bytes() for number in range(2)] == [b"out", b""]
    assert [each.blob.size_bytes for each in done.result.files] == [3, 0]
    book.drop("run-1")
    assert RunBook(root).held() == []
    assert not any(root.iterdir())
    book.drop("run-1")


def test_an_order_that_comes_again_changes_nothing(tmp_path: Path) -> None:
    book = RunBook(tmp_path / "runs")
    first = book.take(ORDER, now_ms=1)
    book.begin("run-1")
    assert book.take(ORDER, now_ms=9).received_ms == first.received_ms
    assert book.held()[0].attempt == 1


def test_runs_are_in_the_order_in_which_they_came_also_after_a_restart(tmp_path: Path) -> None:
    book = RunBook(tmp_path / "runs")
    for name in ("run-9", "run-1"):
        book.take(order(name, plain("a")), now_ms=1)
    book = RunBook(tmp_path / "runs")
    book.take(order("run-5", plain("a")), now_ms=1)
    assert [held.run_id for held in book.held()] == ["run-9", "run-1", "run-5"]


def test_what_was_not_written_whole_is_forgotten(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    RunBook(root).take(ORDER, now_ms=1)
    (root / "run-2").mkdir()
    (root / "run-1" / "run.json").write_text('{"order": 1}')
    assert RunBook(root).held() == []
    assert not any(root.iterdir())


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "a\0b"])
def test_no_id_leads_out_of_the_book(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        RunBook(tmp_path / "runs").take(order(name, plain("a")), now_ms=1)


def test_a_result_can_be_replaced_by_a_failure_and_its_files_are_gone(tmp_path: Path) -> None:
    book = RunBook(tmp_path / "runs")
    book.take(ORDER, now_ms=1)
    book.begin("run-1")
    held = book.end("run-1", Ended(exit_code=42, produced=[produced(tmp_path, "output", b"x")], reviewed=True))
    assert held.reviewed
    held = book.replace_result("run-1", failure=Failure(code="results_blocked", message="No."), rejected=True)
    assert held.result is not None
    assert (held.reviewed, held.rejected, held.result.files) == (False, True, ())
    assert held.result.exit_code is None
    assert not book.file("run-1", 0).exists()


def test_nothing_waits_for_people_where_nothing_was_made(tmp_path: Path) -> None:
    book = RunBook(tmp_path / "runs")
    book.take(ORDER, now_ms=1)
    assert not book.end("run-1", Ended(failure=Failure(code="image", message="No."), reviewed=True)).reviewed


def test_folders_without_rights_are_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    kept, tree = tmp_path / "kept", tmp_path / "tree"
    kept.mkdir()
    (kept / "a").write_text("a")
    (tree / "closed" / "deep").mkdir(parents=True)
    (tree / "link").symlink_to(kept)
    (tree / "closed").chmod(0)
    remove_tree(tree)
    assert not tree.exists()
    assert (kept / "a").exists()
    remove_tree(tree)
