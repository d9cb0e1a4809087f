"""The contract of vantage6: algorithm images that were made for it run as they are.

A partial function finds its input, its databases and its variables where the algorithm wrapper looks for them, and
reaches nothing. A central function (``central`` of the task) besides has a server of its own, on a network of its own,
that speaks as a vantage6 server does and asks this network: :mod:`runnel.client.tasks.vantage6_proxy`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from runnel.client.tasks.beneath import open_beneath
from runnel.client.tasks.contract import INPUT, PAYLOAD, Database, Layout, Mounted, Produced, TaskSite
from runnel.client.tasks.vantage6_files import (
    SESSION_FOLDER_V5,
    TASK_FOLDER,
    TASK_FOLDER_V5,
    TEMPORARY_FOLDER,
    Input,
    Profile,
    Shown,
    container_token,
    encoded,
    frames,
    profile_of,
    read_input,
    require_readable,
    shown_databases,
    variables,
)
from runnel.client.tasks.vantage6_subtasks import SubTasks
from runnel.common.blobs import in_thread
from runnel.common.errors import BadOutput, IllegalState, InvalidInput
from runnel.common.protocol import TaskOrder
from runnel.common.tasks import TaskSpec

if TYPE_CHECKING:
    from runnel.client.runtimes.docker_engine import Engine
    from runnel.client.tasks.vantage6_proxy import Network

_TASK = "vantage6"  # below a run's folder: what the container may write
_COLLECTED = "vantage6-output"
_ANSWERS = "vantage6-answers"
_BLOCK = 1 << 20
# Of an algorithm that has a client and does not call it: nothing listens there.
_NOWHERE = {"HOST": "http://localhost", "PORT": "8080", "API_PATH": ""}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Laid:
    """What the layout of a run is made of, for the time until its image is known."""

    folder: Path
    site: TaskSite
    given: Input
    databases: tuple[Database, ...]
    shown: tuple[Shown, ...]
    token: str = field(default="", repr=False)
    layout: Layout | None = None


class Vantage6Contract:
    """Files, variables and servers as vantage6's algorithm wrapper expects them.

    The profile of a task says for which release its image was made: ``v2``, ``v3``, ``v4.0`` (4.0 and 4.1), ``v4``,
    ``v5``. Of a task that says none it is found in the image, and is ``v4`` where that tells nothing.

    Args:
        network: what central functions ask; None: they are refused.
    """

    def __init__(self, network: Network | None = None) -> None:
        self._network = network
        self._laid: dict[str, _Laid] = {}  # by run; between its layout and its container

    # ---- files; in threads

    def lay_out(self, order: TaskOrder, spec: TaskSpec, folder: Path, site: TaskSite) -> Layout:
        """Write input and token; see :meth:`TaskContract.lay_out`."""
        profile = profile_of(spec.profile)
        if len(spec.executors) != 1:
            raise InvalidInput(f"A vantage6 task has one executor, not {len(spec.executors)}.")
        payload = folder / PAYLOAD
        if not payload.is_file():
            raise InvalidInput('A vantage6 task needs a payload: JSON with "method", "args" and "kwargs".')
        given = read_input(payload.read_bytes())
        databases = _databases(spec, folder, site)
        laid = _Laid(folder=folder, site=site, given=given, databases=databases, shown=shown_databases(databases))
        self._laid[order.run_id] = laid
        return self._dressed(order, spec, profile or Profile.V4)

    def _dressed_anew(self, order: TaskOrder, spec: TaskSpec, profile: Profile, layout: Layout) -> Layout:
        """Return ``layout`` for another profile, with what was added to the layout of the first one."""
        first = self._laid[order.run_id].layout
        fresh = self._dressed(order, spec, profile)
        added = tuple(mount for mount in layout.mounts if first is None or mount not in first.mounts)
        return dataclasses.replace(layout, mounts=(*fresh.mounts, *added), env=fresh.env, tmpfs=fresh.tmpfs)

    def _dressed(self, order: TaskOrder, spec: TaskSpec, profile: Profile) -> Layout:
        laid = self._laid[order.run_id]
        if profile.encodes:
            require_readable(spec.executors[0].env)
        if profile is Profile.V5 and (odd := [each.label for each in laid.shown if each.kind != "parquet"]):
            raise InvalidInput(f"vantage6 5 reads data frames from Parquet files only; {', '.join(odd)} are none.")
        asked = {each.label: {"label": each.label, **laid.given.parameters.get(each.label, {})} for each in laid.shown}
        databases: list[Any] = list(asked.values())
        if profile is Profile.V5:
            databases = [[asked[label] for label in group] for group in frames(laid.given, laid.shown)]
        token = container_token(profile, site=laid.site.name, image=spec.executors[0].image, databases=databases)
        folder = laid.folder / _TASK
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "input").write_bytes(laid.given.as_file(profile, central=spec.central))
        (folder / "token").write_text(token, encoding="utf-8")
        (folder / "output").touch()
        env = variables(profile, spec=spec, site=laid.site.name, given=laid.given, databases=laid.shown, token=token)
        env = {**_NOWHERE, **env, **laid.site.variables}
        mounts = [
            Mounted(source=folder, target=TASK_FOLDER_V5 if profile is Profile.V5 else TASK_FOLDER, read_only=False)
        ]
        for database, shown in zip(laid.databases, laid.shown, strict=True):
            if isinstance(database.where, Path):
                target = f"{SESSION_FOLDER_V5}/{shown.label}.parquet" if profile is Profile.V5 else shown.uri
                mounts.append(Mounted(source=database.where, target=target))
                if profile is Profile.V5:  # or the engine makes them, as root
                    (folder / "session").mkdir(exist_ok=True)
                    (folder / "session" / f"{shown.label}.parquet").touch()
        tmpfs: tuple[str, ...] = (TEMPORARY_FOLDER,)
        if laid.site.group is not None:
            mounts.append(Mounted(source=laid.site.group, target=TEMPORARY_FOLDER, read_only=False))
            tmpfs = ()
        layout = Layout(mounts=tuple(mounts), env=_as_read(env, profile), tmpfs=tmpfs)
        self._laid[order.run_id] = dataclasses.replace(laid, token=token, layout=layout)
        return layout

    def collect(self, spec: TaskSpec, folder: Path, site: TaskSite) -> Sequence[Produced]:
        """Return the bytes that the wrapper wrote, as they are; see :meth:`TaskContract.collect`."""
        kept = folder / _COLLECTED
        with open_beneath(folder / _TASK, "output") as file:
            if file is None:
                raise BadOutput("The algorithm left no output file.", limit="output")
            left = site.output_bytes
            with kept.open("wb") as copy:
                while block := file.read(min(_BLOCK, left + 1)):
                    left -= len(block)
                    if left < 0:
                        raise BadOutput(f"The output has more than {site.output_bytes:,} bytes.", limit="output")
                    copy.write(block)
        return (Produced(name="output", media_type="application/octet-stream", path=kept),)

    # ---- the server of a central function

    @contextlib.asynccontextmanager
    async def accompany(
        self, order: TaskOrder, spec: TaskSpec, layout: Layout, *, engine: Engine, labels: Mapping[str, str]
    ) -> AsyncIterator[Layout]:
        """Fit the layout to the image, and serve a central function; see :meth:`Accompanied.accompany`.

        Raises:
            IllegalState: it is a central function, and this client asks no network.
            EnvironmentFailed: the engine can't give it a network of its own.
        """
        # With libraries that most clients do without: those of the engine, and of a server.
        from runnel.client.tasks.run_network import run_network
        from runnel.client.tasks.vantage6_image import detect_profile
        from runnel.client.tasks.vantage6_proxy import Vantage6Proxy

        image = spec.executors[0].image
        try:
            profile = profile_of(spec.profile)
            if profile is None:
                profile = await detect_profile(engine, image, labels)
                if profile is not Profile.V4:
                    log.info("made for another release of vantage6", image=image, profile=profile.value)
                    layout = await in_thread(self._dressed_anew, order, spec, profile, layout)
            laid = self._laid[order.run_id]
            if not spec.central:
                yield layout
                return
            if self._network is None:
                raise IllegalState("This client has no network that a central function could ask.")
            labels_shown = [each.label for each in laid.shown]
            subtasks = SubTasks(order=order, spec=spec, site=laid.site.name, labels=labels_shown, profile=profile)
            answers = laid.folder / _ANSWERS
            proxy = Vantage6Proxy(
                self._network,
                subtasks,
                run_id=order.run_id,
                client=laid.site.name,
                token=laid.token,
                answers=answers,
                most_bytes=laid.site.output_bytes,
            )
            async with run_network(engine, order.run_id, labels) as place, proxy.serving(place.address) as port:
                where = {"HOST": f"http://{place.address}", "PORT": str(port)}
                env = {**layout.env, **_as_read(where, profile)}
                yield dataclasses.replace(layout, network=place, env=env)
        finally:
            self._laid.pop(order.run_id, None)


def _as_read(env: Mapping[str, str], profile: Profile) -> dict[str, str]:
    if not profile.encodes:
        return dict(env)
    # What is no base32 is taken as it is; this one is read by none but the algorithm client.
    return {name: value if name == "CONTAINER_TOKEN" else encoded(value) for name, value in env.items()}


def _databases(spec: TaskSpec, folder: Path, site: TaskSite) -> tuple[Database, ...]:
    """Return the site's databases in the order of the task, and each table that was selected as one of its own."""
    if missing := [label for label in spec.databases if label not in site.databases]:
        raise InvalidInput(f"The site has no database {', '.join(missing)} that this task may see.")
    tables = sorted((folder / INPUT).glob("*.csv")) if spec.selections else []
    selected = [Database(label=table.stem, kind="csv", where=table) for table in tables]
    return (*(site.databases[label] for label in spec.databases), *selected)
