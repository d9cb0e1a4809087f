"""Finished reports on disk: whole or not there, whatever moment the client dies at."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runnel.client import outbox as outbox_module
from runnel.client.outbox import Outbox
from runnel.common.blobs import LEAST_SPARE_BYTES, digest_payload
from runnel.common.errors import StorageFull
from runnel.common.protocol import REFUSING, WAITING, AssignmentKey, Failure, Outcome, Work

pytestmark = pytest.mark.unit

KEY = AssignmentKey(session_id="ses-1", round=3, work=Work.TRAIN)
OTHER = AssignmentKey(session_id="ses-1", round=3, work=Work.VALIDATE)
OUTCOME = Outcome(client="a", weight=12.0, metrics={"loss": 0.25}, extra_json='{"k": [1]}', elapsed_s={"run": 1.5})


def update(folder: Path, data: bytes = b"a model") -> Path:
    file = folder / "update.npz"
    file.write_bytes(data)
    return file


def the_file(outbox: Path, suffix: str) -> Path:
    (file,) = outbox.glob(f"*{suffix}")
    return file


def test_a_report_is_there_after_a_restart(tmp_path: Path) -> None:
    ref = digest_payload(update(tmp_path))
    kept = Outbox(tmp_path / "out").keep(KEY, OUTCOME, tmp_path / "update.npz")
    assert not (tmp_path / "update.npz").exists()
    again = Outbox(tmp_path / "out")
    assert again.held() == [KEY]
    held = again.get(KEY)
    assert held is not None
    assert held == kept
    assert (held.key, held.outcome, held.payload) == (KEY, OUTCOME, ref)
    assert held.file is not None
    assert held.file.read_bytes() == b"a model"


def test_a_large_payload_that_is_dropped_is_a_spare_of_this_process(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "out")
    outbox.keep(KEY, OUTCOME, update(tmp_path, bytes(LEAST_SPARE_BYTES)))
    outbox.drop(KEY)
    assert the_file(tmp_path / "out", "").suffix == ".spare"
    assert outbox.held() == []
    Outbox(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_has_no_payload(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    failed = Outcome(client="a", failure=Failure(code="exit_status", message="3", log_tail="Traceback …"))
    kept = outbox.keep(KEY, failed, None)
    held = outbox.get(KEY)
    assert held is not None
    assert held == kept
    assert (held.outcome, held.payload, held.file) == (failed, None, None)


@pytest.mark.parametrize("code", [*WAITING, *REFUSING])
def test_that_the_site_did_not_take_the_work_is_not_held_after_a_restart(tmp_path: Path, code: str) -> None:
    outbox = Outbox(tmp_path)
    outbox.keep(KEY, Outcome(client="a", failure=Failure(code=code, message="not yet")), None)
    outbox.keep(OTHER, Outcome(client="a", failure=Failure(code="exit_status", message="3")), None)
    assert set(outbox.held()) == {KEY, OTHER}
    assert Outbox(tmp_path).held() == [OTHER]


def test_a_report_is_dropped_alone_and_dropping_again_is_no_error(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "out")
    outbox.keep(KEY, OUTCOME, update(tmp_path))
    outbox.keep(OTHER, OUTCOME, None)
    outbox.drop(KEY)
    outbox.drop(KEY)
    assert outbox.get(KEY) is None
    assert Outbox(tmp_path / "out").held() == [OTHER]
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_what_a_compression_left_goes_with_its_report(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "out")
    left = tmp_path / "left"
    left.write_bytes(b"left out")
    kept = outbox.keep(KEY, OUTCOME, update(tmp_path), left=left)
    assert kept.left is not None
    assert kept.left.read_bytes() == b"left out"
    outbox.drop(KEY)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_death_between_payload_and_report_leaves_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "out")
    outbox.keep(KEY, OUTCOME, update(tmp_path))
    the_file(tmp_path / "out", ".json").unlink()
    assert the_file(tmp_path / "out", ".payload").exists()
    assert outbox.get(KEY) is None
    assert Outbox(tmp_path / "out").held() == []
    assert list((tmp_path / "out").iterdir()) == []


def test_what_can_not_be_kept_is_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    outbox, left = Outbox(tmp_path / "out"), tmp_path / "left"
    left.write_bytes(b"rest")
    update(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(outbox_module, "write_json", fail)
        with pytest.raises(OSError, match="Too many"):
            outbox.keep(KEY, OUTCOME, tmp_path / "update.npz", left=left)
    assert list((tmp_path / "out").iterdir()) == []
    assert outbox.keep(KEY, OUTCOME, tmp_path / "update.npz", left=left).left is not None


@pytest.mark.parametrize("torn", [".payload", ".json"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(kept=st.floats(0.0, 0.99))
def test_what_is_torn_is_not_taken_for_whole(tmp_path: Path, torn: str, kept: float) -> None:
    root = tmp_path / "out"
    shutil.rmtree(root, ignore_errors=True)
    Outbox(root).keep(KEY, OUTCOME, update(tmp_path, bytes(1000)))
    file = the_file(root, torn)
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    if torn == ".json" and json_is_whole(file):
        return
    again = Outbox(root)
    assert again.held() == []
    assert again.get(KEY) is None
    assert list(root.iterdir()) == []


def json_is_whole(file: Path) -> bool:
    """Only the line's end may be missing."""
    try:
        json.loads(file.read_text())
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"key": ["s", 1, "juggle"]}', "\x00\xff"])
def test_what_is_no_report_is_removed_and_the_others_stay(tmp_path: Path, text: str) -> None:
    outbox = Outbox(tmp_path)
    outbox.keep(KEY, OUTCOME, None)
    (tmp_path / "odd.json").write_text(text, encoding="latin-1")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / ".half.json.tmp").touch()
    assert Outbox(tmp_path).held() == [KEY]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_named_and_leaves_nothing_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    outbox = Outbox(tmp_path / "out")
    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(StorageFull, match=str(tmp_path / "out")):
        outbox.keep(KEY, OUTCOME, update(tmp_path))
    monkeypatch.undo()
    assert Outbox(tmp_path / "out").held() == []


def test_keeping_again_replaces(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "out")
    outbox.keep(KEY, OUTCOME, update(tmp_path))
    ref = digest_payload(update(tmp_path, b"another"))
    outbox.keep(KEY, OUTCOME, tmp_path / "update.npz")
    held = outbox.get(KEY)
    assert held is not None
    assert held.payload == ref
    assert held.file is not None
    assert held.file.read_bytes() == b"another"
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_what_can_not_be_read_now_is_kept_and_nothing_is_said_of_what_it_carries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    outbox = Outbox(tmp_path / "out")
    kept = outbox.keep(KEY, OUTCOME, update(tmp_path))
    monkeypatch.setattr(Path, "read_text", unreadable)
    assert outbox.get(KEY) is None
    with pytest.raises(OSError, match="Too many open files"):
        outbox.reports(KEY.session_id)
    monkeypatch.undo()
    assert outbox.get(KEY) == kept
