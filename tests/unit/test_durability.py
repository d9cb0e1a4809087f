"""What waits for the disk, and what does not have to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from runnel.client.outbox import Outbox
from runnel.common.blobs import BlobStore, Spool, SpoolFile, digest_file, digest_payload
from runnel.common.blobs.digests import update_digest
from runnel.common.disk import read_json, write_json
from runnel.common.errors import CorruptData
from runnel.common.protocol import AssignmentKey, BlobRef, Outcome, Work

pytestmark = pytest.mark.unit

DATA = bytes(range(256)) * 40
REF = BlobRef(sha256=hashlib.sha256(DATA).hexdigest(), size_bytes=len(DATA))
KEY = AssignmentKey(session_id="ses-1", round=3, work=Work.TRAIN)


class Synced:
    """Counts what is flushed to the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        self.count += 1
        self._fsync(descriptor)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Synced:
    return Synced(monkeypatch)


def file_of(folder: Path, data: bytes = DATA) -> Path:
    path = folder / "some"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_store_waits_for_file_and_folder_a_cache_for_nothing(
    tmp_path: Path, synced: Synced, durable: bool
) -> None:
    store = BlobStore(tmp_path / "blobs", durable=durable)
    assert store.adopt(file_of(tmp_path)) == REF
    assert store.path(REF).read_bytes() == DATA
    assert synced.count == (2 if durable else 0)


def test_a_cache_begins_empty_for_a_loss_of_power_may_have_torn_what_it_had(tmp_path: Path) -> None:
    BlobStore(tmp_path / "kept").adopt(file_of(tmp_path))
    BlobStore(tmp_path / "cache", durable=False).adopt(file_of(tmp_path))
    assert BlobStore(tmp_path / "kept").has(REF)
    assert not BlobStore(tmp_path / "cache", durable=False).has(REF)


@pytest.mark.parametrize("durable", [True, False])
def test_a_payload_is_flushed_before_it_gets_its_name_if_it_is_to_last(
    tmp_path: Path, synced: Synced, durable: bool
) -> None:
    file = Spool(tmp_path, durable=durable).open("key", REF)
    file.write(0, DATA)
    assert file.finish().read_bytes() == DATA
    assert synced.count == int(durable)


@pytest.mark.parametrize("durable", [True, False])
def test_a_small_file_is_whole_either_way(tmp_path: Path, synced: Synced, durable: bool) -> None:
    write_json(tmp_path / "some.json", {"a": 1}, durable=durable)
    assert read_json(tmp_path / "some.json") == {"a": 1}
    assert synced.count == (2 if durable else 0)


# ---- the digest of what arrives


class CountedReads:
    """Counts how often files are read for their digest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr("runnel.common.blobs.spool.update_digest", self)

    def __call__(self, digest: hashlib._Hash, path: Path) -> int:
        self.count += 1
        return update_digest(digest, path)


def test_what_one_object_wrote_is_not_read_again_to_be_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = CountedReads(monkeypatch)
    file = Spool(tmp_path).open("key", REF)
    file.write(0, DATA[:100])
    file.close()
    file.write(100, DATA[100:])
    file.close()
    assert file.finish().read_bytes() == DATA
    assert reads.count == 0


def test_what_another_object_began_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = CountedReads(monkeypatch)
    spool = Spool(tmp_path)
    first = spool.open("key", REF)
    first.write(0, DATA[:100])
    first.close()
    second = spool.open("key", REF)
    second.write(100, DATA[100:])
    assert second.finish().read_bytes() == DATA
    assert reads.count == 1


def test_a_file_whose_length_changed_meanwhile_is_not_trusted(tmp_path: Path) -> None:
    file = SpoolFile(partial=tmp_path / "part", whole=tmp_path / "whole", ref=REF)
    file.write(0, DATA)
    file.close()
    file.partial.write_bytes(DATA[:-1])
    with pytest.raises(CorruptData):
        file.finish()
    assert not file.whole.exists()


# ---- reports that a client keeps


def outbox_with_a_report(folder: Path) -> tuple[Outbox, Path]:
    outbox = Outbox(folder / "outbox")
    outbox.keep(KEY, Outcome(client="site-1", weight=7.0), file_of(folder))
    (payload,) = folder.rglob("*.payload")
    return outbox, payload


def test_a_kept_report_outlives_its_process_without_waiting_for_the_disk(tmp_path: Path, synced: Synced) -> None:
    _, payload = outbox_with_a_report(tmp_path)
    assert synced.count == 0
    again = Outbox(tmp_path / "outbox")
    assert again.held() == [KEY]
    report = again.get(KEY)
    assert report is not None
    assert (report.file, report.payload, report.outcome.weight) == (payload, digest_payload(payload), 7.0)
    assert digest_file(payload) == REF


@pytest.mark.parametrize("torn", ["short payload", "no payload", "empty report"])
def test_a_report_that_a_loss_of_power_tore_is_not_held(tmp_path: Path, torn: str) -> None:
    _, payload = outbox_with_a_report(tmp_path)
    match torn:
        case "short payload":
            os.truncate(payload, 10)
        case "no payload":
            payload.unlink()
        case _:
            os.truncate(payload.with_suffix(".json"), 0)
    again = Outbox(tmp_path / "outbox")
    assert again.held() == []
    assert list((tmp_path / "outbox").iterdir()) == []
