"""The contract of PyTaskManager's images (Personal Health Train): text files in and out, and a folder for each run id.

Three variants, by the profile of the task, or else that of the site:

* none: ``/input_output/{input,output,log}.txt``, and the folder of the run id at ``/tmp``. Its client since 2019.
* ``files``: ``/input.txt``, ``/output.txt``, ``/log.txt``, the folder ``/output``, and that of the run id at ``/temp``.
* ``app``: ``/app/input.txt`` and ``/app/output.txt``.

Each has ``RUN_ID``, ``SPARQL_ENDPOINT``, ``endpointUrl``, ``endpointType``, ``endpointToken`` and ``DATABASE_URI`` as
variables and the host name ``dockerhost``, as far as the site has set them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from runnel.client.tasks.beneath import open_beneath
from runnel.client.tasks.contract import PAYLOAD, Layout, Mounted, Produced, TaskSite
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
_OWN, _TAKEN = "input_output", "taken"
_INPUT, _OUTPUT, _LOG = "input.txt", "output.txt", "log.txt"
_TEXT = "text/plain"
_BLOCK_BYTES = 1 << 20
_STRUCK_OUT = b"[secret of the site]"
# Of what is shorter, striking it out would spoil results and hide nothing.
_LEAST_SECRET = 8


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

    def collect(self, spec: TaskSpec, folder: Path, site: TaskSite) -> Sequence[Produced]:
        """Return ``output`` and ``log``: what the containers wrote to those files, without the site's token.

        A file that they removed, or put something else in the place of, is empty.

        Raises:
            BadOutput: they are more than the site lets out.
            StorageFull: no room.
        """
        taken = folder / _TAKEN
        left = site.output_bytes
        produced = []
        with storage_errors(folder):
            taken.mkdir(exist_ok=True)
            for name, file in (("output", _OUTPUT), ("log", _LOG)):
                left -= _take(folder / _OWN, file, taken / file, left, site.settings.get(ENDPOINT_TOKEN, "").encode())
                produced.append(Produced(name=name, media_type=_TEXT, path=taken / file))
        return produced


def _mounts(profile: str | None, folder: Path, group: Path | None) -> tuple[Mounted, ...]:
    own = folder / _OWN
    if profile is None:
        whole = (Mounted(source=own, target="/input_output", read_only=False),)
        return whole if group is None else (*whole, Mounted(source=group, target="/tmp", read_only=False))  # noqa: S108 (inside)
    if profile == _FILES_PROFILE:
        for name in ("output", "temp"):
            (folder / name).mkdir()
        return (
            *(Mounted(source=own / name, target=f"/{name}", read_only=False) for name in (_INPUT, _OUTPUT, _LOG)),
            Mounted(source=folder / "output", target="/output", read_only=False),
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
    database = settings.get(DATABASE_URI, "")
    if not database:
        addresses = [each.where for each in site.databases.values() if isinstance(each.where, str)]
        database = addresses[0] if addresses else ""
    return {
        "RUN_ID": spec.tags.get(RUN_ID_TAG) or spec.group or order.run_id,
        "SPARQL_ENDPOINT": endpoint,
        "endpointUrl": endpoint,
        "endpointType": settings.get(ENDPOINT_TYPE, ""),
        "endpointToken": settings.get(ENDPOINT_TOKEN, ""),
        "DATABASE_URI": database,
    }


def _take(own: Path, name: str, target: Path, most: int, secret: bytes) -> int:
    """Copy what the containers wrote to ``name``, and return how many bytes that are."""
    with open_beneath(own, name) as source, target.open("wb") as copy:
        if source is None:
            return 0
        if source.seek(0, 2) > most:
            raise BadOutput(f"The run wrote more to {name} than the {most:,} bytes that are left.", limit="output")
        source.seek(0)
        if len(secret) >= _LEAST_SECRET:
            _copy_without(secret, source, copy)
        else:
            shutil.copyfileobj(source, copy, _BLOCK_BYTES)
        return copy.tell()


def _copy_without(secret: bytes, source: BinaryIO, target: BinaryIO) -> None:
    held = b""
    while block := source.read(_BLOCK_BYTES):
        held = (held + block).replace(secret, _STRUCK_OUT)
        # The end of a block may be the beginning of the secret.
        keep = next((n for n in range(min(len(secret) - 1, len(held)), 0, -1) if held.endswith(secret[:n])), 0)
        target.write(held[: len(held) - keep])
        held = held[len(held) - keep :]
    target.write(held)
