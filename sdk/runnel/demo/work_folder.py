"""Where a demonstration lies: in the folder that a person named, or in one that is gone afterwards."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from runnel.common.errors import Conflict, InvalidInput
from runnel.demo.options import DemoOptions

MODEL = "model.npz"


@asynccontextmanager
async def work_folder(options: DemoOptions) -> AsyncIterator[Path]:
    """Yield the folder in which everything lies: that which is kept, or one that is removed at the end.

    Raises:
        Conflict: the one to keep is there already and not empty.
        InvalidInput: it can't be made.
    """
    folder = options.folder.absolute()
    there = await asyncio.to_thread(_prepare, folder)
    if options.keep and there - {MODEL}:
        raise Conflict(
            f"{folder} should be new, to keep the demo in it, and already holds {min(there - {MODEL})}.",
            hint="Remove it, or name another one: --dir DIR.",
            path=str(folder),
        )
    if options.keep:
        yield folder
        return
    work = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="runnel-demo-"))
    try:
        yield work
    finally:
        await asyncio.to_thread(_remove, work)
        await asyncio.to_thread(_remove_empty, folder)


def _prepare(folder: Path) -> set[str]:
    """Make the folder, see that the model can be written there before it is trained, and return what is in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise InvalidInput(
            f"The folder {folder} can't be used: {error.strerror}.", hint="Name another one: --dir DIR."
        ) from error


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # there is something in it: the model, or what belongs to somebody else
        folder.rmdir()


def _remove(work: Path) -> None:
    """Remove the folder; what a killed client's entry point still writes there is waited for."""
    for pause_s in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        try:
            shutil.rmtree(work)
        except OSError:
            time.sleep(pause_s)
        else:
            return
    shutil.rmtree(work)


def keep_model(model: Path, target: Path) -> None:
    """Copy the model to where it stays.

    Raises:
        InvalidInput: it can't be written there.
    """
    try:
        shutil.copyfile(model, target)
    except OSError as error:
        raise InvalidInput(
            f"The model can't be written to {target}: {error.strerror}.", hint="Name another folder: --dir DIR."
        ) from error
