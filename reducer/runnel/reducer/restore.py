"""Restore of a reducer's state folder from what :mod:`runnel.reducer.backup` wrote."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import IO, Any

from runnel.common.blobs import storage_errors
from runnel.common.disk import sync_folder
from runnel.common.errors import Conflict, CorruptData, InvalidInput, NotFound
from runnel.reducer.backup import (
    BLOCK_BYTES,
    FORMAT,
    HEADER,
    KEYS,
    MANIFEST,
    MEMBER,
    BackupSummary,
    Progress,
    no_progress,
)
from runnel.reducer.store.database_url import DATABASE_FILE
from runnel.reducer.store.state_lock import StateLock

_MANIFEST_LIMIT_BYTES = 1 << 30
_RESTORING = "restoring"


def restore(backup: Path, state: Path, progress: Progress | None = None) -> BackupSummary:
    """Make the state folder anew from a backup; every file is verified before any is in its place.

    Raises:
        NotFound: there is no such backup.
        Conflict: ``state`` has something in it, or is a file.
        InvalidInput: the file is no backup, or of a newer format.
        CorruptData: it was cut off or changed; what is wrong is named, and nothing of it is kept in ``state``.
        StorageFull: no room; nothing of it is kept in ``state``.
    """
    _require_empty(state)
    try:
        archive = backup.open("rb")
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {backup}.", path=str(backup)) from error
    except IsADirectoryError as error:
        raise InvalidInput(f"{backup} is a folder, not a backup of a reducer.", path=str(backup)) from error
    with archive, storage_errors(state):
        state.mkdir(parents=True, exist_ok=True)
        with StateLock(state):
            place = state / _RESTORING
            try:
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                summary = _extract(archive, backup, place, progress or no_progress)
                os.sync()  # thousands of files, one wait
                # The database last: without it the folder is not a state that a reducer goes on with.
                for name in (*KEYS, "blobs", "partials", DATABASE_FILE):
                    if (place / name).exists():
                        (place / name).rename(state / name)
                sync_folder(state)
            finally:
                shutil.rmtree(place, ignore_errors=True)
    return summary


def _require_empty(state: Path) -> None:
    if not state.exists():
        return
    if not state.is_dir():
        raise Conflict(f"{state} is a file.", hint="Restore into a new folder.", path=str(state))
    # What an attempt that was killed left behind is nothing that anybody misses.
    there = sorted(path.name for path in state.iterdir() if path.name not in {_RESTORING, "lock"})
    if there:
        raise Conflict(
            f"{state} is not empty: there is {there[0]}.",
            hint="Restore into a new folder; what a reducer has there is not overwritten.",
            path=str(state),
        )


def _extract(file: IO[bytes], backup: Path, place: Path, progress: Progress) -> BackupSummary:
    found: dict[str, dict[str, Any]] = {}
    header: dict[str, Any] | None = None
    manifest: dict[str, Any] | None = None
    done = 0
    try:
        with tarfile.open(fileobj=file, mode="r|", bufsize=BLOCK_BYTES) as archive:
            for member in archive:
                if header is None:
                    header = _header(archive, member, backup)
                elif member.name == MANIFEST:
                    manifest = _json_of(archive, member, backup)
                else:
                    found[member.name] = _take(archive, member, place, backup, found, done, header, progress)
                    done += found[member.name]["size_bytes"]
    except (tarfile.TarError, EOFError) as error:
        if header is None:
            raise InvalidInput(f"{backup} is not a backup of a reducer ({error}).", path=str(backup)) from error
        raise CorruptData(f"{backup} is damaged or was cut off ({error}).", path=str(backup)) from error
    if header is None or manifest is None:
        raise CorruptData(f"{backup} has no end: it was cut off.", hint="Use another backup.", path=str(backup))
    _compare(found, manifest, backup)
    return BackupSummary(
        path=backup,
        created_at=str(header.get("created_at")),
        version=str(header.get("version")),
        files=len(found),
        size_bytes=done,
        running=tuple(map(str, header.get("running", ()))),
    )


def _header(archive: tarfile.TarFile, member: tarfile.TarInfo, backup: Path) -> dict[str, Any]:
    if member.name != HEADER:
        raise InvalidInput(f"{backup} is not a backup of a reducer: it begins with {member.name!r:.80}.")
    header = _json_of(archive, member, backup)
    if header.get("format") != FORMAT:
        raise InvalidInput(
            f"{backup} has the format {header.get('format')!r:.20}; this version reads {FORMAT}.",
            hint=f"It was written by Runnel {header.get('version')!s:.40}: restore it with that.",
            path=str(backup),
        )
    return header


def _json_of(archive: tarfile.TarFile, member: tarfile.TarInfo, backup: Path) -> dict[str, Any]:
    source = archive.extractfile(member) if member.isreg() else None
    if source is None or member.size > _MANIFEST_LIMIT_BYTES:
        raise CorruptData(f"{backup} is damaged: {member.name} is no file of a sensible size.", path=str(backup))
    try:
        document = json.loads(source.read())
    except ValueError as error:
        raise CorruptData(f"{backup} is damaged: {member.name} is no JSON.", path=str(backup)) from error
    if not isinstance(document, dict):
        raise CorruptData(f"{backup} is damaged: {member.name} is no JSON object.", path=str(backup))
    return document


def _take(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    place: Path,
    backup: Path,
    found: dict[str, dict[str, Any]],
    done: int,
    header: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Write one member below ``place``; return its digest and length."""
    source = archive.extractfile(member) if member.isreg() else None
    if source is None or not MEMBER.fullmatch(member.name) or member.name in found:
        raise CorruptData(
            f"{backup} holds {member.name!r:.120}, which no backup of a reducer holds there.",
            hint="Nothing of it was kept. Do not use this file.",
            path=str(backup),
        )
    target = place / member.name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    announced = header.get("size_bytes")
    total = announced if isinstance(announced, int) else 0
    descriptor = os.open(
        target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if member.name in KEYS else 0o644
    )
    with os.fdopen(descriptor, "wb") as file:
        while block := source.read(BLOCK_BYTES):
            file.write(block)
            digest.update(block)
            size += len(block)
            progress(done + size, total)
    return {"sha256": digest.hexdigest(), "size_bytes": size}


def _compare(found: dict[str, dict[str, Any]], manifest: dict[str, Any], backup: Path) -> None:
    for name in sorted({*found, *manifest}):
        if found.get(name) != manifest.get(name):
            what = "is missing" if name not in found else "is not in its manifest"
            raise CorruptData(
                f"{backup} is damaged: {name} {'has changed' if name in found and name in manifest else what}.",
                hint="Nothing of it was kept. Use another backup.",
                path=str(backup),
            )
    if DATABASE_FILE not in found:
        raise CorruptData(f"{backup} is damaged: it has no {DATABASE_FILE}.", path=str(backup))
