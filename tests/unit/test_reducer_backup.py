"""Backup and restore of a state folder: what comes back is what there was, and nothing else ever comes back."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sqlite3
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runnel.common.errors import Conflict, CorruptData, InvalidInput, NotFound, RunnelError
from runnel.common.protocol import BlobRef
from runnel.reducer import backup as backup_module
from runnel.reducer.backup import back_up
from runnel.reducer.restore import restore
from runnel.reducer.store import run_files
from runnel.reducer.store.database import Database
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.state_lock import StateLock
from runnel.reducer.store.tables import PartialRow, RunRow
from tests.doubles.reducer_state import START, add_session, model_row
from tests.doubles.task_state import add_task

pytestmark = pytest.mark.unit


def put_blob(state: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    place = state / "blobs" / digest[:2] / digest
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return digest


async def make_state(state: Path) -> str:
    """Make the state of a reducer in the middle of a session; return the digest of the seed model."""
    state.mkdir()
    digest = put_blob(state, b"a model" * 1000)
    (state / "partials").mkdir()
    (state / "partials" / "ord-1.payload").write_bytes(b"a sum" * 5000)
    (state / "partials" / "ord-0.payload").write_bytes(b"nobody wants this")
    (state / "spool").mkdir()
    (state / "spool" / "half").write_bytes(b"half")
    (state / "credential.key").write_bytes(bytes(32))
    (state / "endpoints.json").write_text("{}")
    async with Database(f"sqlite:///{state / 'reducer.db'}") as database:
        async with Journal(database).transaction() as tx:
            model = model_row("mod-1")
            model.digest = digest
            session = await add_session(tx.session, "ses-aaaaaaaaaa", model=model, round_number=1)
            package = put_blob(state, b"a package")
            await tx.session.flush()
            await tx.session.connection()
            tx.session.add(
                PartialRow(
                    order_id="ord-1",
                    session_id=session.id,
                    round=1,
                    counted_in=1,
                    child="c1",
                    kind="weighted_sum",
                    weight=1.0,
                    filename="ord-1.payload",
                )
            )
            await tx.record("session.created", "default", session.id)
        assert package
    # The double's package has a digest of its own making, for which there is no file.
    with contextlib.closing(sqlite3.connect(state / "reducer.db")) as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("UPDATE package SET digest = ?", (package,))
        connection.execute("UPDATE session SET package_digest = ?", (package,))
        connection.commit()
    return digest


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


async def test_files_of_tasks_are_saved_as_long_as_they_are_kept(tmp_path: Path) -> None:
    state = tmp_path / "state"
    await make_state(state)
    kept, gone, given = (put_blob(state, content) for content in (b"kept", b"gone", b"given"))
    async with Database(f"sqlite:///{state / 'reducer.db'}") as database:
        journal = Journal(database)
        runs = [*await add_task(journal, "a"), *await add_task(journal, "a")]
        async with journal.transaction() as tx:
            for run, digest in zip(runs, (kept, gone), strict=True):
                await run_files.add_file(tx.session, run.run_id, BlobRef(sha256=digest, size_bytes=4))
            (await tx.session.get_one(RunRow, runs[1].run_id)).removed_at = START
            await run_files.add_blob(tx.session, "default", BlobRef(sha256=given, size_bytes=5), keep=None)
    (state / "blobs" / gone[:2] / gone).unlink()
    back_up(state, tmp_path / "backup.tar")
    (state / "blobs" / kept[:2] / kept).unlink()
    with pytest.raises(CorruptData, match="names files that it does not have"):
        back_up(state, tmp_path / "again.tar")
    restore(tmp_path / "backup.tar", tmp_path / "restored")
    for digest in (kept, given):
        assert (tmp_path / "restored" / "blobs" / digest[:2] / digest).exists()


async def test_a_state_whose_models_are_in_a_bucket_is_not_saved_by_halves(tmp_path: Path) -> None:
    await make_state(tmp_path / "state")
    (tmp_path / "state" / "blobs.place").write_text("s3://models/a at https://s3.example.org\n")
    with pytest.raises(NotFound, match=r"are not in it but in s3://models/a at https://s3\.example\.org"):
        back_up(tmp_path / "state", tmp_path / "backup.tar")
    assert not (tmp_path / "backup.tar").exists()


async def test_what_comes_back_is_what_there_was(tmp_path: Path) -> None:
    state, file, copy = tmp_path / "state", tmp_path / "b.tar", tmp_path / "copy"
    await make_state(state)
    before = files(state)
    seen: list[tuple[int, int]] = []
    summary = back_up(state, file, lambda done, total: seen.append((done, total)))
    assert {k: v for k, v in files(state).items() if not k.startswith("reducer.db")} == {
        **{k: v for k, v in before.items() if not k.startswith("reducer.db")},
        "backup.lock": b"",
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert summary.running == ("ses-aaaaaaaaaa",)
    assert seen[-1] == (summary.size_bytes, summary.size_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    restored: list[tuple[int, int]] = []
    again = restore(file, copy, lambda done, total: restored.append((done, total)))
    assert restored[-1] == (summary.size_bytes, summary.size_bytes)
    assert (again.files, again.size_bytes, again.running) == (summary.files, summary.size_bytes, summary.running)
    after = files(copy)
    wanted = {k: v for k, v in before.items() if k.startswith(("blobs/", "credential.key"))}
    wanted["partials/ord-1.payload"] = before["partials/ord-1.payload"]
    assert {k: v for k, v in after.items() if k not in {"reducer.db", "lock"}} == wanted
    assert stat.S_IMODE((copy / "credential.key").stat().st_mode) == 0o600
    async with Database(f"sqlite:///{copy / 'reducer.db'}") as database:
        journal = Journal(database)
        assert await journal.verify() == 1
        async with journal.transaction() as tx:
            await tx.record("goes.on", "default")
        assert await journal.verify() == 2


async def test_a_backup_is_of_one_moment_while_the_reducer_writes_and_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the copy of the database and the links, the round is reduced and its payload removed."""
    state, file = tmp_path / "state", tmp_path / "b.tar"
    await make_state(state)
    original, moments = backup_module._look, []

    def let_go(database: Path) -> object:
        rows = original(database)
        moments.append(rows)
        if len(moments) == 1:
            with contextlib.closing(sqlite3.connect(state / "reducer.db")) as connection:
                connection.execute("DELETE FROM partial")
                connection.commit()
            (state / "partials" / "ord-1.payload").unlink()
        return rows

    monkeypatch.setattr(backup_module, "_look", let_go)
    back_up(state, file)
    assert len(moments) == 2
    restore(file, tmp_path / "copy")
    assert not (tmp_path / "copy" / "partials").exists()


async def test_what_was_pinned_is_in_the_backup_though_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, file = tmp_path / "state", tmp_path / "b.tar"
    await make_state(state)
    original = backup_module._pin

    def and_then_remove(*arguments: object) -> list[str]:
        missing = original(*arguments)  # type: ignore[arg-type]
        (state / "partials" / "ord-1.payload").unlink()
        return missing

    monkeypatch.setattr(backup_module, "_pin", and_then_remove)
    back_up(state, file)
    restore(file, tmp_path / "copy")
    assert (tmp_path / "copy" / "partials" / "ord-1.payload").read_bytes() == b"a sum" * 5000


async def test_a_state_without_its_files_is_not_backed_up_silently(tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "b.tar"
    digest = await make_state(state)
    (state / "blobs" / digest[:2] / digest).unlink()
    with pytest.raises(CorruptData, match=digest):
        back_up(state, file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state"]
    assert not (state / "backup-pins").exists()


async def test_a_model_that_the_disk_has_changed_is_named(tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "b.tar"
    digest = await make_state(state)
    (state / "blobs" / digest[:2] / digest).write_bytes(b"A model" * 1000)
    with pytest.raises(CorruptData, match=f"{digest} has another content"):
        back_up(state, file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state"]


async def test_a_damaged_database_is_not_backed_up(tmp_path: Path) -> None:
    state = tmp_path / "state"
    await make_state(state)
    content = bytearray((state / "reducer.db").read_bytes())
    content[4096:40_960] = bytes(36_864)
    (state / "reducer.db").write_bytes(content)
    with pytest.raises(CorruptData, match="damaged"):
        back_up(state, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


async def test_nothing_is_overwritten(tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "b.tar"
    await make_state(state)
    file.write_text("precious")
    with pytest.raises(Conflict, match=r"b\.tar exists"):
        back_up(state, file)
    assert file.read_text() == "precious"
    file.unlink()
    back_up(state, file)
    with pytest.raises(Conflict, match=r"is not empty: there is blobs|backup\.lock"):
        restore(file, state)
    with pytest.raises(NotFound, match=r"no reducer\.db"):
        back_up(tmp_path, tmp_path / "c.tar")
    with pytest.raises(NotFound):
        restore(tmp_path / "none.tar", tmp_path / "copy")


async def test_paths_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    state = tmp_path / "state"
    await make_state(state)
    with pytest.raises(NotFound, match=f"There is no folder {tmp_path / 'nowhere'}") as caught:
        back_up(state, tmp_path / "nowhere" / "b.tar")
    assert caught.value.hint == "Make it first."
    back_up(state, tmp_path / "b.tar")
    with pytest.raises(InvalidInput, match="is a folder, not a backup"):
        restore(state, tmp_path / "copy")
    with pytest.raises(Conflict, match=r"b\.tar is a file"):
        restore(tmp_path / "b.tar", tmp_path / "b.tar")
    assert not (tmp_path / "copy").exists()


async def test_a_folder_that_is_being_restored_is_left_alone(tmp_path: Path) -> None:
    state, file, copy = tmp_path / "state", tmp_path / "b.tar", tmp_path / "copy"
    await make_state(state)
    back_up(state, file)
    copy.mkdir()
    with StateLock(copy):
        (copy / "restoring").mkdir()
        (copy / "restoring" / "half").touch()
        with pytest.raises(Conflict, match="Another reducer"):
            restore(file, copy)
        assert (copy / "restoring" / "half").exists()
    restore(file, copy)  # what an attempt that was killed left is swept away
    assert not (copy / "restoring").exists()


# ---- damaged and hostile files


@pytest.fixture
async def good(tmp_path: Path) -> bytes:
    await make_state(tmp_path / "state")
    back_up(tmp_path / "state", tmp_path / "good.tar")
    return (tmp_path / "good.tar").read_bytes()


def refused(tmp_path: Path, content: bytes, kind: type[RunnelError], match: str) -> None:
    file, copy = tmp_path / "bad.tar", tmp_path / "copy"
    file.write_bytes(content)
    with pytest.raises(kind, match=match):
        restore(file, copy)
    assert set(files(copy)) <= {"lock"} if copy.exists() else True


async def test_a_backup_that_was_cut_off_is_refused_wherever_it_was_cut(tmp_path: Path, good: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(good)) as archive:
        first, *_, last = archive.getmembers()
        begin, end = first.offset_data + first.size, last.offset_data + last.size
    for length in (*range(begin, end, 1777), end - 1):
        refused(tmp_path, good[:length], CorruptData, r"cut off|damaged")
    for length in (0, 100, 511, begin - 1):
        refused(tmp_path, good[:length], InvalidInput, "not a backup")


async def test_a_changed_byte_is_noticed(tmp_path: Path, good: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(good)) as archive:
        members = [m for m in archive.getmembers() if m.name not in {"runnel-backup.json", "manifest.json"}]
    for member in members:
        changed = bytearray(good)
        changed[member.offset_data + member.size // 2] ^= 1
        refused(tmp_path, bytes(changed), CorruptData, f"{member.name} has changed")


def rewritten(good: bytes, change: Callable[[str, bytes], Iterator[tuple[tarfile.TarInfo, bytes]]]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(good)) as source, tarfile.open(fileobj=target, mode="w") as archive:
        for member in source:
            opened = source.extractfile(member)
            assert opened is not None
            for info, data in change(member.name, opened.read()):
                archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return target.getvalue()


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data) if kind == tarfile.REGTYPE else 0, kind, link
    return info, data


@pytest.mark.parametrize(
    "intruder",
    [
        entry("../escaped", b"x"),
        entry("/tmp/escaped", b"x"),
        entry("blobs/../../escaped", b"x"),
        entry("blobs/ab/not-a-digest", b"x"),
        entry("partials/..", b"x"),
        entry("credential.key", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        entry("blobs", kind=tarfile.SYMTYPE, link="/tmp"),
        entry("partials/x", kind=tarfile.LNKTYPE, link="/etc/passwd"),
        entry("partials/x", kind=tarfile.CHRTYPE),
        entry("lock", b"x"),
        entry("reducer.db", b"again"),
    ],
    ids=lambda e: f"{e[0].name}-{e[0].type.decode()}",
)
async def test_members_that_no_backup_has_are_refused(
    tmp_path: Path, good: bytes, intruder: tuple[tarfile.TarInfo, bytes]
) -> None:
    def change(name: str, data: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        if name == "manifest.json":
            manifest = json.loads(data)
            manifest[intruder[0].name] = {
                "sha256": hashlib.sha256(intruder[1]).hexdigest(),
                "size_bytes": len(intruder[1]),
            }
            yield intruder
            data = json.dumps(manifest).encode()
        yield entry(name, data)

    refused(tmp_path, rewritten(good, change), CorruptData, "no backup of a reducer holds|damaged")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("gone", ["reducer.db", "credential.key", "partials/ord-1.payload", "manifest.json"])
async def test_what_is_missing_is_named(tmp_path: Path, good: bytes, gone: str) -> None:
    def change(name: str, data: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        if name != gone:
            yield entry(name, data)

    refused(tmp_path, rewritten(good, change), CorruptData, "cut off" if gone == "manifest.json" else gone)


async def test_other_files_and_newer_formats_are_told_apart(tmp_path: Path, good: bytes) -> None:
    def newer(name: str, data: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        yield entry(name, data.replace(b'"format": 1', b'"format": 2') if name == "runnel-backup.json" else data)

    refused(tmp_path, rewritten(good, newer), InvalidInput, "format 2; this version reads 1")
    refused(tmp_path, b"not a tar at all" * 1000, InvalidInput, "not a backup")
    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w") as archive:
        archive.addfile(entry("photo.jpg", b"x")[0], io.BytesIO(b"x"))
    refused(tmp_path, other.getvalue(), InvalidInput, r"begins with 'photo\.jpg'")
