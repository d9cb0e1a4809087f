"""Jobs and images that people drop in a folder, and the results that they find beside it. Everything here blocks.

The files are PyTaskManager's: a job is a ``.ptmjob``, JSON with ``image``, ``runId`` and ``input``; an image is a
``.dockerimage``, as ``docker save`` writes it. A job that was taken is moved to the folder ``…_history``, and what came
of it is a folder in ``…_output``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from runnel.common.blobs import digest_file
from runnel.common.disk import read_json, state_folder, sync_folder, write_json
from runnel.common.errors import CorruptData, InvalidInput, NotFound
from runnel.common.protocol import BlobRef
from runnel.common.storage import storage_errors, sync_file
from runnel.common.tasks import MAX_WITHIN, Blob, TaskSpec
from runnel.common.tasks.pytaskmanager import pytaskmanager_task

JOB, IMAGE = ".ptmjob", ".dockerimage"
RESULT = "result.json"

_MAX_JOB_BYTES = 64 << 20
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)
_ENDINGS = {"text/plain": ".txt", "application/zip": ".zip", "application/json": ".json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it was read: ``run_id`` is that of this very file and no other's, ``text`` its input."""

    path: Path
    run_id: str
    asked_run_id: str
    image: str
    text: bytes
    profile: str | None

    def spec(self, text: Blob | None = None) -> TaskSpec:
        """Return the task; ``text``: the stored input, if it is too large to be within.

        Raises:
            InvalidInput: it is no task.
        """
        return pytaskmanager_task(
            image=self.image,
            run_id=self.asked_run_id,
            text=self.text if text is None else text,
            profile=self.profile,
            source=self.path.name,
            name=self.path.stem[:200],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """What lies in the folder: files that were the same at the look before, and whether images still change."""

    images: tuple[Path, ...]
    jobs: tuple[Path, ...]
    images_come: bool


class _Job(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    run_id: StrictStr | StrictInt = Field(alias="runId")
    image: StrictStr
    text: StrictStr | None = Field(alias="input")
    profile: StrictStr | None = None


@dataclass(slots=True)
class ExchangeFolder:
    """See above.

    Args:
        folder: where files are dropped.
        output: where results are put; by default ``folder`` with ``_output`` after its name.
        inputs: folder of the client's own, for large inputs.
    """

    folder: Path
    output: Path
    inputs: Path
    _seen: dict[Path, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def history(self) -> Path:
        """Where jobs go that were taken."""
        return self.folder.with_name(f"{self.folder.name}_history")

    def prepare(self) -> None:
        """Make the folders, and remove results that were half written.

        Raises:
            BadSettings: one of them can't be used.
        """
        for each in (self.folder, self.history, self.output, self.inputs):
            state_folder(each)
        for left in self.output.glob(".run-*.part"):
            shutil.rmtree(left, ignore_errors=True)

    def look(self) -> Dropped:
        """Return the files that have not changed since the look before: what is still being copied is left alone."""
        seen: dict[Path, tuple[int, int, int]] = {}
        for root, folders, names in os.walk(self.folder):
            folders.sort()
            for name in sorted(names):
                path = Path(root, name)
                if path.suffix in (JOB, IMAGE) and not path.is_symlink():
                    with contextlib.suppress(FileNotFoundError):  # somebody took it back
                        seen[path] = _identity(path)
        same = [path for path, identity in seen.items() if self._seen.get(path) == identity]
        self._seen = seen
        return Dropped(
            images=tuple(path for path in same if path.suffix == IMAGE),
            jobs=tuple(path for path in same if path.suffix == JOB),
            images_come=any(path.suffix == IMAGE and path not in same for path in seen),
        )

    def read(self, path: Path) -> Job:
        """Read a job.

        Raises:
            InvalidInput: it is none; the error names what is wrong.
        """
        with path.open("rb") as file:
            data = file.read(_MAX_JOB_BYTES + 1)
        if len(data) > _MAX_JOB_BYTES:
            raise InvalidInput(f"{path.name} has more than {_MAX_JOB_BYTES:,} bytes.")
        try:
            job = _Job.model_validate(json.loads(data))
            text = (job.text or "").encode()
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise InvalidInput(f"{path.name} is no job: {problems}.") from error
        except ValueError as error:
            raise InvalidInput(f"{path.name} should be JSON but is not: {error}.") from error
        return Job(
            path=path,
            run_id=self.run_id(path),
            asked_run_id=str(job.run_id),
            image=job.image,
            text=text,
            profile=job.profile,
        )

    def run_id(self, path: Path) -> str:
        """Return the id of the run that this very file asks for: the same file dropped again asks for another."""
        about = [str(path.relative_to(self.folder)), *map(str, _identity(path)), digest_file(path).sha256]
        return f"run-{hashlib.sha256(chr(0).join(about).encode()).hexdigest()[:24]}"

    def store(self, job: Job) -> Blob | None:
        """Keep a large input as a file; None: it may be within the task.

        Raises:
            StorageFull: no room.
        """
        if len(job.text) <= MAX_WITHIN:
            return None
        digest = hashlib.sha256(job.text).hexdigest()
        beside = self.inputs / f"{digest}.part"
        with storage_errors(self.inputs):
            beside.write_bytes(job.text)
            sync_file(beside)
            beside.replace(self.inputs / digest)
            sync_folder(self.inputs)
        return Blob(sha256=digest, size_bytes=len(job.text))

    def fetch(self, ref: BlobRef, target: Path) -> None:
        """Copy a kept input.

        Raises:
            NotFound: it is not here.
        """
        path = self.inputs / ref.sha256
        if not path.is_file():
            raise NotFound(f"There is no input {ref.sha256[:16]} of this exchange.")
        with storage_errors(target):
            shutil.copyfile(path, target)

    def keep_inputs(self, digests: set[str]) -> None:
        """Remove all kept inputs but these."""
        for path in self.inputs.iterdir():
            if path.name not in digests:
                path.unlink(missing_ok=True)

    def file_away(self, path: Path) -> None:
        """Move a file that was dropped to the history, durably, under a name that is free there."""
        target = self.history / path.name
        number = 1
        while target.exists():
            number += 1
            target = self.history / f"{path.stem}.{number}{path.suffix}"
        try:
            path.rename(target)
        except FileNotFoundError:  # somebody took it back meanwhile: it is taken all the same
            return
        except OSError:  # the history is on another disk
            shutil.move(path, target)
        sync_folder(self.history)
        sync_folder(path.parent)

    def still_there(self, name: str, run_id: str) -> Path | None:
        """Return the file of a run that was taken, if it has not been filed away."""
        path = self.folder / name
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if self.run_id(path) == run_id:
                return path
        return None

    def publish(self, name: str, run_id: str, told: Mapping[str, Any], files: Mapping[str, tuple[str, Path]]) -> Path:
        """Put the results of a run into a folder of their own, which appears whole; the same again changes nothing.

        Args:
            name: of the job's file; the results' folder is called so, without its ending.
            run_id: of the run.
            told: what came of it, for ``result.json``.
            files: result name to media type and file.

        Raises:
            StorageFull: no room.
        """
        stem = _UNSAFE.sub("_", Path(name).stem).lstrip(".") or "job"
        target = self.output / stem
        if target.exists() and not _is_of(target, run_id):
            target = self.output / f"{stem}-{run_id}"
        if _is_of(target, run_id):
            return target
        beside = self.output / f".{run_id}.part"
        with storage_errors(self.output):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            names = {}
            for each, (media_type, source) in files.items():
                names[each] = each + _ENDINGS.get(media_type.partition(";")[0], "")
                shutil.copyfile(source, beside / names[each])
                sync_file(beside / names[each])
            write_json(beside / RESULT, {"run": run_id, "job": name, **told, "files": names})
            beside.rename(target)
            sync_folder(self.output)
        return target


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat(follow_symlinks=False)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _is_of(folder: Path, run_id: str) -> bool:
    try:
        told = read_json(folder / RESULT)
    except (NotFound, CorruptData, NotADirectoryError):
        return False
    return isinstance(told, dict) and told.get("run") == run_id
