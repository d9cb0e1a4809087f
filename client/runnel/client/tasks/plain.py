"""The plain contract: folders for input, output and logs, as Federated Data Sharing's images expect them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runnel.client.tasks.beneath import files_beneath, open_beneath
from runnel.client.tasks.contract import INPUT, PAYLOAD, Layout, Mounted, Produced, TaskSite
from runnel.client.tasks.output_zip import write_zip
from runnel.common.errors import InvalidInput
from runnel.common.protocol import TaskOrder
from runnel.common.storage import storage_errors
from runnel.common.tasks import TaskSpec

PAYLOAD_NAME = "input.json"
CONFIG = "/app"
_LOG_NAME = "log"
_OUTPUT_NAME = "output"
_MOST_LOGS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where a container finds its folders: ``outputs`` are all collected, and the first is the one that it is told."""

    input: str = "/mnt/input"
    outputs: tuple[str, ...] = ("/mnt/output",)
    logs: str = "/mnt/logs"


PROFILES = {
    None: Folders(),
    "plural": Folders(input="/mnt/inputs", outputs=("/mnt/data",)),
    "misspelt": Folders(outputs=("/mnt/output", "/mnt/ouput")),
}


class PlainContract:
    """``/mnt/input`` to read, ``/mnt/output`` and ``/mnt/logs`` to write; see :class:`.contract.TaskContract`.

    The input folder has a CSV file for each selected table, and the payload as ``input.json``. ``INPUT_PATH`` is that
    folder, or with the profile ``plural`` the one file in it, if there is one only. Results: ``output``, a ZIP archive
    of the output folder, and ``log``, what is in the folder of logs, if anything.
    """

    def lay_out(self, order: TaskOrder, spec: TaskSpec, folder: Path, site: TaskSite) -> Layout:
        """Make the folders."""
        folders = _folders(spec)
        with storage_errors(folder):
            given = folder / INPUT
            given.mkdir(exist_ok=True)
            if (folder / PAYLOAD).exists():
                shutil.move(folder / PAYLOAD, given / PAYLOAD_NAME)
            made = []
            for number, inside in enumerate((*folders.outputs, folders.logs)):
                (folder / _place(number)).mkdir()
                made.append(Mounted(source=folder / _place(number), target=inside, read_only=False))
        env = {
            "CA_INPUT_FOLDER": folders.input,
            "CA_OUTPUT_FOLDER": folders.outputs[0],
            "CA_CONFIG_FOLDER": CONFIG,
            "INPUT_PATH": _input_path(spec, folders, given),
        }
        mounts = (Mounted(source=given, target=folders.input), *made)
        return Layout(mounts=mounts, env={**site.variables, **env})

    def collect(self, spec: TaskSpec, folder: Path, site: TaskSite) -> Sequence[Produced]:
        """Return ``log`` and ``output``."""
        folders, produced = _folders(spec), []
        logs, log = folder / _place(len(folders.outputs)), folder / "collected-log"
        if _write_log(logs, log, most=site.output_bytes):
            produced.append(Produced(name=_LOG_NAME, media_type="text/plain; charset=utf-8", path=log))
        # The folders of a task that has two are the same to who reads the archive.
        sources = [(folder / _place(number), "", "") for number in range(len(folders.outputs))]
        target = folder / "collected-output.zip"
        write_zip(target, sources, most_bytes=site.output_bytes, most_files=site.output_files)
        produced.append(Produced(name=_OUTPUT_NAME, media_type="application/zip", path=target))
        return produced


def _folders(spec: TaskSpec) -> Folders:
    try:
        return PROFILES[spec.profile]
    except KeyError:
        known = ", ".join(sorted(name for name in PROFILES if name))
        raise InvalidInput(f"The plain contract has no profile {spec.profile!r}.", hint=f"It has {known}.") from None


def _place(number: int) -> str:
    return f"written-{number}"


def _input_path(spec: TaskSpec, folders: Folders, given: Path) -> str:
    if spec.profile != "plural":
        return folders.input
    names = [path.name for path in given.iterdir()] + [
        PurePosixPath(each.path).name for each in spec.inputs if str(PurePosixPath(each.path).parent) == folders.input
    ]
    return f"{folders.input}/{names[0]}" if len(names) == 1 else folders.input


def _write_log(logs: Path, target: Path, *, most: int) -> bool:
    """Put the files in the folder of logs one after another into ``target``; return whether there are any."""
    names = [each.path for each in files_beneath(logs, most_files=_MOST_LOGS)]
    if not names:
        return False
    with storage_errors(target), target.open("wb") as out:
        for name in names:
            with open_beneath(logs, name) as file:
                if file is None:
                    continue
                if len(names) > 1:
                    out.write(f"==> {name} <==\n".encode(errors="replace"))
                while out.tell() < most and (block := file.read(min(1 << 20, most - out.tell()))):
                    out.write(block)
    return True
