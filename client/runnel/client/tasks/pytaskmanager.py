"""The contract of PyTaskManager's images (Personal Health Train): text files in and out, and a folder for each run id.

Three variants, by the profile of the task, or else that of the site:

* none: ``/input_output/{input,output,log}.txt``, and the folder of the run id at ``/tmp``. Its client since 2019.
* ``files``: ``/input.txt``, ``/output.txt``, ``/log.txt``, the folder ``/output``, and that of the run id at ``/temp``.
* ``app``: ``/app/input.txt`` and ``/app/output.txt``.

Each has ``RUN_ID``, ``SPARQL_ENDPOINT``, ``endpointUrl``, ``endpointType``, ``endpointToken`` and ``DATABASE_URI`` as
variables and the host name ``dockerhost``, as far as the site has set them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from runnel.client.tasks.beneath import open_beneath
from runnel.client.tasks.contract import PAYLOAD, Layout, Mounted, Produced, TaskSite
from runnel.client.tasks.discretion import Discretion
from runnel.client.tasks.output_zip import write_zip
from runnel.common.errors import BadOutput, InvalidInput
from runnel.common.protocol import TaskOrder
from runnel.common.storage import storage_errors
from runnel.common.tasks import TaskSpec
from runnel.common.tasks.pytaskmanager import RUN_ID_TAG

ENDPOINT_URL, ENDPOINT_TYPE, ENDPOINT_TOKEN = "endpoint_url", "endpoint_type", "endpoint_token"
DATABASE_URI, DOCKER_HOST = "database_uri", "docker_host"
PROFILE = "profile"
"""The settings of this contract; all are texts, and none is needed."""

_FILES_PROFILE, _APP_PROFILE = "files", "app"
_GATEWAY = "host-gateway"  # the engine's word for the address of its own host
_OWN, _OUTPUT_FOLDER, _TAKEN = "input_output", "output", "taken"
_INPUT, _OUTPUT, _LOG = "input.txt", "output.txt", "log.txt"
_TEXT = "text/plain"


class PyTaskManagerContract:
    """Implements :class:`runnel.client.tasks.contract.TaskContract`."""

    def lay_out(self, order: TaskOrder, spec: TaskSpec, folder: Path, site: TaskSite) -> Layout:
        """Write the text files, the input as the task's payload has it, and return where the containers find them.

        Raises:
            InvalidInput: there is no such profile.
            StorageFull: no room.
        """
        own = folder / _OWN
        with storage_errors(folder):
            own.mkdir()
            if (folder / PAYLOAD).exists():
                shutil.copyfile(folder / PAYLOAD, own / _INPUT)
            for name in (_INPUT, _OUTPUT, _LOG):
                (own / name).touch()
            mounts = _mounts(spec.profile or site.settings.get(PROFILE), folder, site.group)
        return Layout(
            mounts=mounts,
            env=dict(site.variables) | _variables(order, spec, site),
            hosts={"dockerhost": site.settings.get(DOCKER_HOST) or _GATEWAY},
        )

    def secrets(self, site: TaskSite) -> Sequence[str]:
        """Return the token of the endpoint, and the address of the database, which may have a password in it."""
        return [site.settings.get(ENDPOINT_TOKEN, ""), _database(site)]

    def collect(self, spec: TaskSpec, folder: Path, site: TaskSite) -> Sequence[Produced]:
        """Return ``output`` and ``log``: what the containers wrote to those files, without the site's secrets; of the
        profile ``files`` also ``files``, a ZIP archive of the folder ``/output``, if there is anything in it.

        A file that they removed, or put something else in the place of, is empty.

        Raises:
            BadOutput: they are more than the site lets out.
            StorageFull: no room.
        """
        taken = folder / _TAKEN
        left, discretion = site.output_bytes, Discretion(self.secrets(site))
        produced = []
        with storage_errors(folder):
            taken.mkdir(exist_ok=True)
            for name, file in (("output", _OUTPUT), ("log", _LOG)):
                left -= _take(folder / _OWN, file, taken / file, left, discretion)
                produced.append(Produced(name=name, media_type=_TEXT, path=taken / file))
            if (folder / _OUTPUT_FOLDER).is_dir():
                target = taken / "files.zip"
                sources = [(folder / _OUTPUT_FOLDER, "", "")]
                files, _ = write_zip(target, sources, most_bytes=left, most_files=site.output_files)
                if files:
                    produced.append(Produced(name="files", media_type="application/zip", path=target))
        return produced


def _mounts(profile: str | None, folder: Path, group: Path | None) -> tuple[Mounted, ...]:
    own = folder / _OWN
    if profile is None:
        whole = (Mounted(source=own, target="/input_output", read_only=False),)
        return whole if group is None else (*whole, Mounted(source=group, target="/tmp", read_only=False))  # noqa: S108 (inside)
    if profile == _FILES_PROFILE:
        for name in (_OUTPUT_FOLDER, "temp"):
            (folder / name).mkdir()
        return (
            *(Mounted(source=own / name, target=f"/{name}", read_only=False) for name in (_INPUT, _OUTPUT, _LOG)),
            Mounted(source=folder / _OUTPUT_FOLDER, target="/output", read_only=False),
            Mounted(source=group or folder / "temp", target="/temp", read_only=False),
        )
    if profile == _APP_PROFILE:
        return tuple(Mounted(source=own / name, target=f"/app/{name}", read_only=False) for name in (_INPUT, _OUTPUT))
    raise InvalidInput(
        f"The contract pytaskmanager has no profile {profile!r}.",
        hint=f"Leave it out, or choose {_FILES_PROFILE} or {_APP_PROFILE}.",
        profile=profile,
    )


def _variables(order: TaskOrder, spec: TaskSpec, site: TaskSite) -> dict[str, str]:
    settings = site.settings
    endpoint = settings.get(ENDPOINT_URL, "")
    return {
        "RUN_ID": spec.tags.get(RUN_ID_TAG) or spec.group or order.run_id,
        "SPARQL_ENDPOINT": endpoint,
        "endpointUrl": endpoint,
        "endpointType": settings.get(ENDPOINT_TYPE, ""),
        "endpointToken": settings.get(ENDPOINT_TOKEN, ""),
        "DATABASE_URI": _database(site),
    }


def _database(site: TaskSite) -> str:
    if DATABASE_URI in site.settings:
        return site.settings[DATABASE_URI]
    return next((each.where for each in site.databases.values() if isinstance(each.where, str)), "")


def _take(own: Path, name: str, target: Path, most: int, discretion: Discretion) -> int:
    """Copy what the containers wrote to ``name``, and return how many bytes that are."""
    with open_beneath(own, name) as source, target.open("wb") as copy:
        if source is None:
            return 0
        if source.seek(0, os.SEEK_END) > most:
            raise BadOutput(f"The run wrote more to {name} than the {most:,} bytes that are left.", limit="output")
        source.seek(0)
        discretion.copy(source, copy)
        return copy.tell()
