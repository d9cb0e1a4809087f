"""Backup of a reducer's state folder: the embedded database, models, packages, payloads and keys.

A backup is one tar file (uncompressed: models do not compress) whose members are, in this order,

* ``runnel-backup.json``: format, version and time, so that its first block tells what the file is;
* ``reducer.db``, ``credential.key``, ``operator.token``, ``blobs/ab/<sha256>``, ``partials/<name>``;
* ``manifest.json``: SHA-256 and length of each of them. A file without it was cut off.

It is the state of one moment, also while the reducer runs: the database is copied by SQLite's online backup within one
read transaction, and the files that it names are pinned by hard links before anything is read from them. When the
reducer has let go of one of them in between, the moment is taken anew. What nodes are pushing in that moment is not in
it; they push it again. Everything here blocks and streams: memory does not grow with the state.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from runnel.common.blobs import storage_errors
from runnel.common.disk import sync_folder
from runnel.common.errors import Conflict, CorruptData, NotFound
from runnel.reducer.store.bucket_url import bucket_of
from runnel.reducer.store.database_url import DATABASE_FILE

Progress = Callable[[int, int], None]
"""Is called with the bytes that are done and the bytes that there are."""

FORMAT = 1
HEADER = "runnel-backup.json"
MANIFEST = "manifest.json"
KEYS = ("credential.key", "operator.token")

BLOCK_BYTES = 1 << 20
_MOMENTS = 10
_PAGES = 1024
_PINS = "backup-pins"
MEMBER = re.compile(
    rf"{re.escape(DATABASE_FILE)}|{'|'.join(map(re.escape, KEYS))}"
    r"|blobs/([0-9a-f]{2})/\1[0-9a-f]{62}|partials/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSummary:
    """What is in a backup. ``size_bytes``: sum of its files; ``running``: ids of sessions that are to go on."""

    path: Path
    created_at: str
    version: str
    files: int
    size_bytes: int
    running: tuple[str, ...]


def back_up(state: Path, output: Path, progress: Progress | None = None) -> BackupSummary:
    """Write a backup of the state folder to ``output``, with mode 0600, as it holds keys; the reducer may run.

    Raises:
        NotFound: there is no embedded database in ``state``, its models are in a bucket, or there is no folder for
            ``output``.
        Conflict: ``output`` exists, or another backup of this folder is under way.
        CorruptData: a file of the state is not what it was when it was stored; it is named.
        StorageFull: no room; nothing is left at ``output``.
    """
    database = state / DATABASE_FILE
    if not database.is_file():
        raise NotFound(
            f"There is no {DATABASE_FILE} in {state}.",
            hint="Give the --state of a reducer. One whose --database is elsewhere is backed up by the means of that"
            " database, together with this folder.",
            path=str(state),
        )
    bucket = bucket_of(state)
    if bucket is not None:
        raise NotFound(
            f"The models and packages of {state} are not in it but in {bucket}; a backup is of one folder with all.",
            hint="Save the database (sqlite3 reducer.db '.backup FILE') and credential.key, and after them the bucket"
            " by its own means: versions, or a copy.",
            path=str(state),
        )
    if output.exists():
        raise Conflict(f"{output} exists.", hint="Choose another --output, or remove it first.", path=str(output))
    if not output.absolute().parent.is_dir():
        raise NotFound(f"There is no folder {output.absolute().parent}.", hint="Make it first.", path=str(output))
    partial = output.with_name(f".{output.name}.{secrets.token_hex(4)}.part")
    with _only_backup(state), storage_errors(output):
        try:
            with _pinned(state) as (pins, rows):
                descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb", BLOCK_BYTES) as file:
                    summary = _write(file, pins, rows, output, progress or no_progress)
                    file.flush()
                    os.fsync(file.fileno())
            partial.rename(output)
            sync_folder(output.absolute().parent)
        finally:
            partial.unlink(missing_ok=True)
    return summary


# ---- one moment


@contextlib.contextmanager
def _only_backup(state: Path) -> Iterator[None]:
    with (state / "backup.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(f"Another backup of {state} is under way.", hint="Wait for its end.") from error
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What the database of a moment says."""

    blobs: frozenset[str]
    partials: frozenset[str]
    running: tuple[str, ...]


@contextlib.contextmanager
def _pinned(state: Path) -> Iterator[tuple[Path, _Rows]]:
    """Yield a folder with a whole state of one moment, as links to the files of the reducer."""
    pins = state / _PINS
    try:
        for _ in range(_MOMENTS):
            shutil.rmtree(pins, ignore_errors=True)
            with storage_errors(state):
                pins.mkdir(mode=0o700)
                _copy_database(state / DATABASE_FILE, pins / DATABASE_FILE)
                rows = _look(pins / DATABASE_FILE)
                missing = _pin(state, pins, rows)
            if not missing:
                break
        else:
            raise CorruptData(
                f"The state {state} names files that it does not have, such as {missing[0]}.",
                hint="They were removed by hand or lie elsewhere; sessions that need them can't go on.",
                missing=missing[0],
            )
        yield pins, rows
    finally:
        shutil.rmtree(pins, ignore_errors=True)


def _copy_database(source: Path, target: Path) -> None:
    try:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=30, isolation_level=None)) as read,
            contextlib.closing(sqlite3.connect(target)) as write,
        ):
            # The read transaction holds one moment while the reducer writes on; without it each write of the reducer
            # would begin the copy anew.
            read.execute("BEGIN")
            read.execute("SELECT count(*) FROM sqlite_master").fetchone()
            read.backup(write, pages=_PAGES)
            found = write.execute("PRAGMA quick_check(1)").fetchone()[0]
            # One file is whole by itself then; the reducer turns to its way of writing when it opens it.
            write.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        found = str(error)
    if found != "ok":
        raise CorruptData(f"{source} is damaged: {found}.", hint="Restore an earlier backup.", path=str(source))


def _look(database: Path) -> _Rows:
    with contextlib.closing(sqlite3.connect(database)) as read:
        tables = {name for (name,) in read.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"alembic_version", "model", "package", "partial", "session"} <= tables:
            raise CorruptData(f"{DATABASE_FILE} is not the database of a reducer.", hint="Is --state the right folder?")
        columns = {column[1] for column in read.execute("PRAGMA table_info(model)")}
        kept = "WHERE removed_at IS NULL" if "removed_at" in columns else ""  # a database of before is saved as well
        named = f"SELECT digest FROM model {kept} UNION SELECT digest FROM package"  # noqa: S608
        blobs = {digest for (digest,) in read.execute(named)}
        blobs |= {d for (d,) in read.execute("SELECT optimizer_state FROM model WHERE optimizer_state IS NOT NULL")}
        if "server_state" in {column[1] for column in read.execute("PRAGMA table_info(round)")}:
            blobs |= {d for (d,) in read.execute("SELECT server_state FROM round WHERE server_state IS NOT NULL")}
        if "run_file" in tables:
            results = "SELECT digest FROM run_file JOIN run ON run.id = run_id WHERE removed_at IS NULL"
            for query in (results, "SELECT digest FROM task_blob"):
                blobs |= {digest for (digest,) in read.execute(query)}
        partials = {name for (name,) in read.execute("SELECT filename FROM partial")}
        ended = "('finished', 'stopped', 'failed')"
        running = tuple(i for (i,) in read.execute(f"SELECT id FROM session WHERE phase NOT IN {ended} ORDER BY id"))  # noqa: S608
    return _Rows(blobs=frozenset(blobs), partials=frozenset(partials), running=running)


def _pin(state: Path, pins: Path, rows: _Rows) -> list[str]:
    """Link all blobs, the wanted payloads and the keys into ``pins``; return what the rows name and is not there."""
    wanted = [f"blobs/{digest[:2]}/{digest}" for digest in rows.blobs] + [f"partials/{name}" for name in rows.partials]
    # Blobs that no row names yet are about to be; they may come along.
    others = [str(path.relative_to(state)) for path in (state / "blobs").glob("??/*")]
    missing = [name for name in wanted if not MEMBER.fullmatch(name)]
    for name in sorted({*wanted, *others, *KEYS}):
        if not MEMBER.fullmatch(name):
            continue
        target = pins / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _link(state / name, target)
        except FileNotFoundError:
            if name in wanted:
                missing.append(name)
    return missing


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        # A file system without hard links: the file itself does not change, so a copy is as good.
        shutil.copyfile(source, target)


# ---- the archive


class _Digesting:
    """Reads a file for the archive and knows the digest of what was read."""

    def __init__(self, file: IO[bytes], told: Callable[[int], None]) -> None:
        self._file, self._told = file, told
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        block = self._file.read(size)
        self.digest.update(block)
        self._told(len(block))
        return block


def _write(file: IO[bytes], pins: Path, rows: _Rows, output: Path, progress: Progress) -> BackupSummary:
    paths = sorted(path for path in pins.rglob("*") if path.is_file())
    paths.sort(key=lambda path: path.name != DATABASE_FILE)
    total = sum(path.stat().st_size for path in paths)
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    summary = BackupSummary(
        path=output,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=version("runnel"),
        files=len(paths),
        size_bytes=total,
        running=rows.running,
    )
    header = {"format": FORMAT, **{k: v for k, v in asdict(summary).items() if k != "path"}}
    manifest: dict[str, dict[str, Any]] = {}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _add_json(archive, HEADER, header)
        for path in paths:
            name = str(path.relative_to(pins))
            with path.open("rb") as source:
                info = archive.gettarinfo(arcname=name, fileobj=source)
                info.mode, info.uid, info.gid, info.uname, info.gname = 0o600, 0, 0, "", ""
                # gettarinfo takes the second link to an inode for a link; here all are files.
                info.type, info.linkname, info.size = tarfile.REGTYPE, "", os.fstat(source.fileno()).st_size
                reader = _Digesting(source, told)
                archive.addfile(info, reader)
            digest = reader.digest.hexdigest()
            if name.startswith("blobs/") and digest != path.name:
                raise CorruptData(
                    f"The blob {path.name} has another content than when it was stored.",
                    hint="The disk has damaged it; restore it from an earlier backup.",
                    sha256=path.name,
                )
            manifest[name] = {"sha256": digest, "size_bytes": info.size}
        _add_json(archive, MANIFEST, manifest)
    return summary


def _add_json(archive: tarfile.TarFile, name: str, document: object) -> None:
    data = json.dumps(document, indent=1).encode()
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o600, int(datetime.now(UTC).timestamp())
    archive.addfile(info, io.BytesIO(data))


def no_progress(_done: int, _total: int) -> None:
    """Nobody looks."""
