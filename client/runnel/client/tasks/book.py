"""The runs that a client holds, on its disk from before it says so until the network has settled them."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from runnel.client.tasks.contract import Produced
from runnel.common.blobs import digest_file, storage_errors
from runnel.common.crash_points import CrashPoint, reach
from runnel.common.disk import read_json, sync_folder, write_json
from runnel.common.errors import CorruptData, NotFound
from runnel.common.ids import valid_name
from runnel.common.protocol import BlobRef, Failure, ResultFile, RunResult, TaskOrder

_FILE = "run.json"
_RESULTS = "results"
_WORK = "work"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended at this site, before anything of it was told.

    ``rejected``: by the site, so that nothing ran. ``reviewed``: somebody has to look at its files before they leave.
    """

    failure: Failure | None = None
    rejected: bool = False
    exit_code: int | None = None
    produced: Sequence[Produced] = ()
    elapsed_s: Mapping[str, float] = field(default_factory=dict)
    image_digest: str = ""
    reviewed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRun:
    """A run that this client holds.

    Args:
        order: as it came.
        number: by which runs are in the order in which they came.
        received_ms: Unix time.
        attempt: from 1; 0: it has not begun.
        result: None: it has not ended.
        rejected: it ended because the site does not want it.
        reviewed: its results wait for somebody at the site.
    """

    order: TaskOrder
    number: int
    received_ms: int
    attempt: int = 0
    result: RunResult | None = None
    rejected: bool = False
    reviewed: bool = False

    @property
    def run_id(self) -> str:
        """Of the order."""
        return self.order.run_id


class RunBook:
    """One folder for each run, named by its id; a run is held when its ``run.json`` is there. All methods block.

    What is written is on the disk when a method returns: the network is told of nothing that a loss of power undoes.

    Args:
        root: made if it does not exist; what an earlier process did not finish writing is removed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        self._runs: dict[str, HeldRun] = {}
        for folder in root.iterdir():
            if (held := _read(folder)) is None:
                remove_tree(folder)
            else:
                self._runs[held.run_id] = held
        self._number = max((held.number for held in self._runs.values()), default=0)

    def held(self) -> list[HeldRun]:
        """Return all runs in the order in which they came."""
        return sorted(self._runs.values(), key=lambda held: held.number)

    def get(self, run_id: str) -> HeldRun | None:
        """Return a run that is held."""
        return self._runs.get(run_id)

    def take(self, order: TaskOrder, *, now_ms: int) -> HeldRun:
        """Hold a run; one that is held already stays as it is.

        Raises:
            InvalidInput: its id can't be the name of a folder.
            StorageFull: no room.
        """
        if (known := self._runs.get(order.run_id)) is not None:
            return known
        folder = self._root / valid_name(order.run_id)
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
            sync_folder(self._root)
        self._number += 1
        return self._write(HeldRun(order=order, number=self._number, received_ms=now_ms))

    def begin(self, run_id: str) -> tuple[HeldRun, Path]:
        """Begin a run, or begin it anew; return it and an empty folder to work in.

        Raises:
            StorageFull: no room.
        """
        held = self._runs[run_id]
        held = self._write(dataclasses.replace(held, attempt=held.attempt + 1))
        for earlier in (self._root / run_id).glob(f"{_WORK}-*"):
            remove_tree(earlier)
        # A name of its own: what an earlier attempt left may be what can't be removed.
        work = self._root / run_id / f"{_WORK}-{held.attempt}"
        with storage_errors(work):
            work.mkdir()
        return held, work

    def end(self, run_id: str, ended: Ended) -> HeldRun:
        """Keep how a run ended; its result files are moved here, and its folder to work in is removed.

        Raises:
            StorageFull: no room; then nothing has changed but that files may have been moved.
        """
        held, folder = self._runs[run_id], self._root / run_id
        results = folder / _RESULTS
        with storage_errors(folder):
            remove_tree(results)
            results.mkdir()
            files = tuple(_keep(each, results / str(number)) for number, each in enumerate(ended.produced))
            sync_folder(results)
        reach(CrashPoint.RUN_ENDED)
        result = RunResult(
            failure=ended.failure,
            exit_code=ended.exit_code,
            files=files,
            elapsed_s=dict(ended.elapsed_s),
            image_digest=ended.image_digest,
            attempt=max(1, held.attempt),
        )
        reviewed = ended.reviewed and bool(files)
        held = self._write(dataclasses.replace(held, result=result, rejected=ended.rejected, reviewed=reviewed))
        for work in folder.glob(f"{_WORK}-*"):
            remove_tree(work)
        return held

    def replace_result(self, run_id: str, *, failure: Failure, rejected: bool = False) -> HeldRun:
        """Make a run end in ``failure`` without any file, whatever it had come to; what it had is removed.

        Args:
            run_id: of the run.
            failure: why.
            rejected: by the site's people, so that its exit status stays there too.

        Raises:
            StorageFull: no room.
        """
        held = self._runs[run_id]
        result = dataclasses.replace(held.result or RunResult(), failure=failure, files=())
        if rejected:
            # A container can say something by its exit status, too.
            result = dataclasses.replace(result, exit_code=None)
        held = self._write(dataclasses.replace(held, result=result, rejected=rejected, reviewed=False))
        remove_tree(self._root / run_id / _RESULTS)
        return held

    def released(self, run_id: str) -> HeldRun:
        """Let the results of a run leave.

        Raises:
            StorageFull: no room.
        """
        return self._write(dataclasses.replace(self._runs[run_id], reviewed=False))

    def drop(self, run_id: str) -> None:
        """Forget a run; one that is not there is no error."""
        if self._runs.pop(run_id, None) is not None:
            folder = self._root / run_id
            (folder / _FILE).unlink(missing_ok=True)
            remove_tree(folder)

    def file(self, run_id: str, number: int) -> Path:
        """Return where the result file ``number`` of a run is."""
        return self._root / run_id / _RESULTS / str(number)

    def _write(self, held: HeldRun) -> HeldRun:
        write_json(self._root / held.run_id / _FILE, dataclasses.asdict(held), mode=0o600)
        self._runs[held.run_id] = held
        return held


def read_runs(root: Path) -> list[HeldRun]:
    """Return the runs in the book at ``root``, for people who look at it while a client may be writing. Blocks."""
    if not root.is_dir():
        return []
    found = [_read(folder) for folder in root.iterdir()]
    return sorted((held for held in found if held is not None), key=lambda held: held.number)


def result_path(root: Path, run_id: str, number: int) -> Path:
    """Return where the result file ``number`` of a run is in the book at ``root``."""
    return root / run_id / _RESULTS / str(number)


def remove_tree(folder: Path) -> None:
    """Remove ``folder`` with all that is in it, also where a run left folders without rights. Blocks."""
    if not os.path.lexists(folder):
        return
    for path, folders, _ in os.walk(folder):
        for name in folders:
            one = Path(path) / name
            if not one.is_symlink():
                _open_up(one)
    shutil.rmtree(folder, ignore_errors=True)


def _open_up(folder: Path) -> None:
    try:
        folder.chmod(0o700)
    except OSError as error:  # the removal says what stays
        log.debug("the rights of a folder can't be changed", folder=str(folder), error=str(error))


def _keep(produced: Produced, target: Path) -> ResultFile:
    # It may be on another disk, and the run may have given it to another user.
    shutil.move(produced.path, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return ResultFile(name=produced.name, media_type=produced.media_type, blob=digest_file(target))


def _read(folder: Path) -> HeldRun | None:
    try:
        told: dict[str, Any] = read_json(folder / _FILE)
        result = told["result"]
        return HeldRun(
            **{**told, "order": TaskOrder(**told["order"]), "result": None if result is None else _result(result)}
        )
    except (NotFound, NotADirectoryError):
        return None
    except (CorruptData, KeyError, TypeError) as error:
        # The network gives it again: this client says no longer that it holds it.
        log.error("an unreadable run was dropped", folder=str(folder), error=str(error))
        return None


def _result(told: dict[str, Any]) -> RunResult:
    failure = told["failure"]
    files = tuple(ResultFile(**{**each, "blob": BlobRef(**each["blob"])}) for each in told["files"])
    return RunResult(**{**told, "failure": None if failure is None else Failure(**failure), "files": files})
