"""The contract with the code of a compute package: which files it is given and what is taken from it.

Each entry point is called in the package's root with absolute paths in a folder that is made for the run and removed
with everything in it when the run is over, however it ends:

* ``train MODEL_IN MODEL_OUT``: ``MODEL_IN`` is the global model, ``MODEL_IN-metadata`` the client settings of the
  session as JSON. It writes ``MODEL_OUT``, a model of the same names, shapes and dtypes, and, if it wants,
  ``MODEL_OUT-metadata``, a JSON object whose ``num_examples`` is the weight in the mean.
* ``validate MODEL_IN VALIDATION_JSON``: it writes a JSON object; its numbers are metrics. ``predict`` likewise.
* ``startup``: once for an unpacked package, before anything else of it.
* ``build SEED``: it writes a seed model. Of a package with a ``fedn.yaml`` it is called without, as FEDn does, and
  writes ``../seed.npz`` or ``seed.npz``.

Models are ``.npz`` files, or ``.safetensors`` where the package or the session's seed says so: their names end with
that. Those of packages that use FEDn's ``binaryhelper`` or ``androidhelper`` are files of nothing but numbers.

Neither output exists before. A script may well write to its input, and the cached model serves other runs: so
``MODEL_IN`` is a copy, or the cached model itself where no other run uses it meanwhile; if that was written to, it is
dropped.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from runnel.client.domain.contract import (
    MAX_JSON_BYTES,
    Notes,
    TrainResult,
    ValidateResult,
    check_settings,
    read_notes,
)
from runnel.client.fedn_surroundings import SeedPlaces, fedn_variables, is_told_no_seed, lay_data_beside
from runnel.client.model_exchange import ModelExchange
from runnel.client.run_folders import RunFolder, few_bytes, run_folder
from runnel.client.runtimes.runtime import STARTED_MARK, Call, Finished, Limits, LineSink, Prepared, Runtime
from runnel.common.blobs import by_size, in_thread, storage_errors
from runnel.common.errors import BadModel, BadOutput
from runnel.common.model_format import ModelFormat
from runnel.common.tensors import ModelSchema, open_npz

_JSON_OUTPUTS = {"validate": "validation.json", "predict": "prediction.json"}
_COPY_BYTES = 1 << 30
_LENT_NS = 10**18
"""When a model that is lent was modified, as its file says until somebody writes to it."""


async def train(
    runtime: Runtime,
    prepared: Prepared,
    *,
    model: Path,
    workdir: Path,
    settings_json: str,
    env: Mapping[str, str],
    timeout_s: float | None,
    say: LineSink,
    limits: Limits | None = None,
    lend: bool = False,
    model_format: ModelFormat = ModelFormat.NPZ,
) -> TrainResult:
    """Run ``train`` on ``model`` and check what it leaves.

    Args:
        runtime: where.
        prepared: by ``runtime``.
        model: the global model, canonical ``.npz``; not modified; removed if it was lent and written to.
        workdir: folder, made for the run if it is not there; the update is left in it, all else of the run is removed.
        settings_json: the session's client settings, a JSON object.
        env: from :func:`runnel.client.runtimes.variables.entry_point_variables`.
        timeout_s: for the entry point alone.
        say: takes its lines.
        limits: for its process; the defaults of :class:`Limits` if None.
        lend: give it ``model`` itself and no copy, as nobody else uses it meanwhile.
        model_format: that of the session's seed, for packages that don't say theirs.

    Raises:
        BadOutput: no model was written, or its metadata is not what the contract says.
        BadModel: what it wrote is no model, not one of the same names, shapes and dtypes, or not finite.
        EntryPointFailed, EntryPointTimeout, BadPackage: see :meth:`Runtime.run`.
        InvalidInput: ``settings_json`` is no JSON object.
        StorageFull: no room for the files of the run.
    """
    check_settings(settings_json)
    async with run_folder(workdir) as place:
        folder, exchange = place.path, ModelExchange.of(prepared.package.manifest, model_format)
        model_in, model_out = folder / f"model_in{exchange.suffix}", folder / f"model_out{exchange.suffix}"
        run = _Run(
            runtime=runtime, prepared=prepared, folder=folder, env=env, timeout_s=timeout_s, say=say, limits=limits
        )
        nbytes = _size(model)
        async with _given(model, model_in, settings_json, lend=lend, exchange=exchange) as expect:
            finished = await run("train", model_in, model_out)
        nbytes = max(nbytes, few_bytes(folder))  # it can't unpack to more than the model
        kept, notes = await by_size(nbytes, _take_update, finished, expect, model_out, place, exchange)
        _tell_not_finite(notes, say)
    return TrainResult(update=kept, notes=notes, elapsed_s=finished.elapsed_s, log_tail=finished.log_tail)


async def validate(
    runtime: Runtime,
    prepared: Prepared,
    *,
    model: Path,
    workdir: Path,
    settings_json: str,
    env: Mapping[str, str],
    timeout_s: float | None,
    say: LineSink,
    limits: Limits | None = None,
    lend: bool = False,
    model_format: ModelFormat = ModelFormat.NPZ,
    entry_point: Literal["validate", "predict"] = "validate",
) -> ValidateResult:
    """Run ``validate`` on ``model`` and read the JSON that it leaves; arguments and errors are those of :func:`train`.

    ``predict`` has the same contract: its numbers and the rest of its JSON are the result.

    Raises:
        BadOutput: it wrote no JSON object.
    """
    check_settings(settings_json)
    async with run_folder(workdir) as place:
        folder, exchange = place.path, ModelExchange.of(prepared.package.manifest, model_format)
        model_in, out = folder / f"model_in{exchange.suffix}", folder / _JSON_OUTPUTS[entry_point]
        run = _Run(
            runtime=runtime, prepared=prepared, folder=folder, env=env, timeout_s=timeout_s, say=say, limits=limits
        )
        async with _given(model, model_in, settings_json, lend=lend, exchange=exchange):
            finished = await run(entry_point, model_in, out)
        with _told_with(finished, out, entry_point):
            notes = await in_thread(_take_notes, out, entry_point=entry_point)
        _tell_not_finite(notes, say)
    return ValidateResult(notes=notes, elapsed_s=finished.elapsed_s, log_tail=finished.log_tail)


async def startup(
    runtime: Runtime,
    prepared: Prepared,
    *,
    workdir: Path,
    env: Mapping[str, str],
    timeout_s: float | None,
    say: LineSink,
    limits: Limits | None = None,
) -> bool:
    """Run ``startup`` if the package has it and it has not yet ended well for these unpacked files.

    A mark in the package's root remembers that, so it holds over restarts of the client and ends with the files. Tasks
    that share ``prepared`` wait for each other.

    Returns:
        Whether it was run.

    Raises:
        EntryPointFailed, EntryPointTimeout: see :meth:`Runtime.run`; it will be tried again.
    """
    if "startup" not in prepared.package.manifest.entry_points:
        return False
    mark = prepared.package.root / STARTED_MARK
    async with prepared.starting:
        if await in_thread(mark.exists):
            return False
        async with run_folder(workdir) as place:
            folder = place.path
            run = _Run(
                runtime=runtime, prepared=prepared, folder=folder, env=env, timeout_s=timeout_s, say=say, limits=limits
            )
            await run("startup")
        with storage_errors(mark):
            await in_thread(_touch, mark)
    return True


async def build(
    runtime: Runtime,
    prepared: Prepared,
    *,
    seed: Path,
    workdir: Path,
    env: Mapping[str, str],
    timeout_s: float | None,
    say: LineSink,
    limits: Limits | None = None,
) -> Path:
    """Run ``build`` and write the model that it leaves to ``seed`` as a canonical ``.npz``; return ``seed``.

    Raises:
        BadOutput: it wrote no file.
        BadModel: the file is no model, or has numbers that are not finite.
        EntryPointFailed, EntryPointTimeout, BadPackage: see :meth:`Runtime.run`.
    """
    manifest = prepared.package.manifest
    exchange = ModelExchange.of(manifest)
    async with run_folder(workdir) as place:
        folder = place.path
        out = folder / f"seed{exchange.suffix}"
        run = _Run(
            runtime=runtime, prepared=prepared, folder=folder, env=env, timeout_s=timeout_s, say=say, limits=limits
        )
        if is_told_no_seed(manifest):
            places = await in_thread(SeedPlaces.of, prepared.package.root)
            finished = await run("build")
            out = await in_thread(places.written, out)
        else:
            finished = await run("build", out)
        with _told_with(finished, out, "build"):
            await in_thread(_take_model, out, seed, exchange, entry_point="build", expect=None)
    return seed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """All that the runs of one folder have in common."""

    runtime: Runtime
    prepared: Prepared
    folder: Path
    env: Mapping[str, str]
    timeout_s: float | None
    say: LineSink
    limits: Limits | None = field(default=None)

    async def __call__(self, entry_point: str, *arguments: Path) -> Finished:
        package = self.prepared.package
        env = fedn_variables(package.manifest, self.env)
        if package.manifest.speaks_fedn:
            await in_thread(lay_data_beside, package.manifest, package.root, env)
        call = Call(
            entry_point=entry_point,
            arguments=tuple(map(str, arguments)),
            workdir=self.folder,
            env=env,
            timeout_s=self.timeout_s,
            limits=self.limits or Limits(),
        )
        return await self.runtime.run(self.prepared, call, self.say)


def _touch(mark: Path) -> None:
    """Make a file; where ``startup`` has made a link of that name it must not lead the client elsewhere."""
    os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))


def _size(file: Path) -> int:
    return file.stat().st_size


@asynccontextmanager
async def _given(
    model: Path, model_in: Path, settings_json: str, *, lend: bool, exchange: ModelExchange
) -> AsyncIterator[ModelSchema]:
    """Make the files of the input, which are there while the block runs; the value is the schema of the model."""
    with storage_errors(model_in):
        given = partial(_give, model, model_in, settings_json, lend=lend, exchange=exchange)
        lent, schema = await by_size(_size(model) + len(settings_json), given)
    try:
        yield schema
    finally:
        if lent:
            _take_back(model)


def _give(
    model: Path, model_in: Path, settings_json: str, *, lend: bool, exchange: ModelExchange
) -> tuple[bool, ModelSchema]:
    """Return whether the model is lent, and its schema."""
    schema = _schema_of(model)
    lent = exchange.lends and lend and _lend(model, model_in)
    if not exchange.lends:
        exchange.give(model, model_in)
    elif not lent:
        _copy(model, model_in)
    Path(f"{model_in}-metadata").write_text(settings_json, encoding="utf-8")
    return lent, schema


def _lend(model: Path, model_in: Path) -> bool:
    try:
        os.utime(model, ns=(_LENT_NS, _LENT_NS))
        model_in.hardlink_to(model)
    except OSError:  # a filesystem without links
        return False
    return True


def _take_back(model: Path) -> None:
    with suppress(FileNotFoundError):  # the cache has dropped it meanwhile
        if model.stat().st_mtime_ns != _LENT_NS:
            model.unlink()


def _copy(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks until either is written where the filesystem can do that."""
    if not hasattr(os, "copy_file_range"):  # not Linux
        shutil.copyfile(source, target)
        return
    with source.open("rb") as read, target.open("wb") as write:
        try:
            while os.copy_file_range(read.fileno(), write.fileno(), _COPY_BYTES):
                pass
        except OSError:  # not between these two filesystems; if there is no room, copyfile says so
            shutil.copyfile(source, target)


def _schema_of(model: Path) -> ModelSchema:
    with open_npz(model, source="the global model") as opened:
        return opened.schema


@contextmanager
def _told_with(finished: Finished, output: Path, entry_point: str) -> Iterator[None]:
    """Give the error about an output the last lines of the run that left it: the reason is often there."""
    try:
        yield
    except (BadModel, BadOutput) as error:
        error.fields |= {"entry_point": entry_point, "output": output.name, "log_tail": finished.log_tail}
        raise


def _take_model(
    path: Path,
    target: Path,
    exchange: ModelExchange,
    *,
    entry_point: str,
    expect: ModelSchema | None,
    keep_plain: bool = False,
) -> None:
    _require_file(path, entry_point)
    exchange.take(path, target, source=f"the entry point {entry_point}", expect=expect, keep_plain=keep_plain)


def _take_update(
    finished: Finished, expect: ModelSchema, model_out: Path, place: RunFolder, exchange: ModelExchange
) -> tuple[Path, Notes]:
    """Take what ``train`` left: the update, checked and kept, and its metadata; remove the rest."""
    update, metadata = model_out.with_name("update.npz"), Path(f"{model_out}-metadata")
    with _told_with(finished, model_out, "train"):
        _take_model(model_out, update, exchange, entry_point="train", expect=expect, keep_plain=True)
    with _told_with(finished, metadata, "train"):
        notes = _take_notes(metadata, entry_point="train", optional=True)
    return place.clear(update), notes


def _take_notes(path: Path, *, entry_point: str, optional: bool = False) -> Notes:
    if optional and not os.path.lexists(path):
        return Notes()
    _require_file(path, entry_point)
    with path.open("rb") as file:
        return read_notes(file.read(MAX_JSON_BYTES + 1), what=f"{path.name} of the entry point {entry_point}")


def _require_file(path: Path, entry_point: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise BadOutput(
            f"The entry point {entry_point} ended well but did not write {path.name}.",
            hint="It is to write to the path that is its last argument.",
        ) from None
    if not stat.S_ISREG(mode):
        raise BadOutput(
            f"The entry point {entry_point} should write {path.name} as a file but made something else of it."
        )


def _tell_not_finite(notes: Notes, say: LineSink) -> None:
    for name, value in notes.extra.items():
        if isinstance(value, str) and value.endswith("(not a finite number)"):
            say("runnel", f"The metric {name} is {value}: it is kept with the report but is no metric.")
