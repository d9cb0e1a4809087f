"""The server that a central function of vantage6 calls: its routes, as its algorithm client knows them.

It listens on the run's own network only, takes the token of that run only, and gives what this network answers in the
words of a vantage6 server 4. Where that client polls for the end of a task, the answer waits for it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog
from aiohttp import web

from runnel.client.tasks.vantage6_asked import decoded
from runnel.client.tasks.vantage6_files import COLLABORATION, OWN_TASK
from runnel.client.tasks.vantage6_pages import UNPAGED, integer, page, page_asked
from runnel.client.tasks.vantage6_subtasks import SubTask, SubTasks
from runnel.common.blobs import Source, in_thread
from runnel.common.errors import (
    DeadlineExceeded,
    EnvironmentFailed,
    Forbidden,
    InvalidInput,
    NotFound,
    RunnelError,
    TooLarge,
    Unauthenticated,
)
from runnel.common.protocol import BlobRef
from runnel.common.tasks import MAX_WITHIN, Blob, Content
from runnel.common.tasks.asks import LookAtTask, NewTask, SitesAsk, SubRun, TaskAnswer, TaskAsk
from runnel.transport.status import status_of, unexpected

VERSION = "4.15.2"
"""Of the interface that is spoken here."""

_BODY_BYTES = 256 << 20
_ANSWER_S = 300.0  # for a network that was lost to come back
_WAIT_S = 25.0  # of one question for the end of a task
_TRANSFER_S = 3600.0

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Network(Protocol):
    """The way up of the client."""

    async def ask(self, ask: TaskAsk, *, deadline_s: float) -> TaskAnswer:
        """Ask in the name of a run."""
        ...

    async def fetch(self, ref: BlobRef, target: Path, *, deadline_s: float) -> None:
        """Bring a blob."""
        ...

    async def push(self, order_id: str, source: Source, ref: BlobRef, *, deadline_s: float) -> object:
        """Give a blob to the network, under a run's name."""
        ...


class Vantage6Proxy:
    """Serves one central function.

    Args:
        network: that is asked.
        run_id: of the central function.
        client: where it runs.
        subtasks: what it sees.
        token: that it shows.
        answers: folder for results on their way to it.
        most_bytes: of one result.
    """

    def __init__(
        self,
        network: Network,
        subtasks: SubTasks,
        *,
        run_id: str,
        client: str,
        token: str,
        answers: Path,
        most_bytes: int,
    ) -> None:
        self._network = network
        self._subtasks = subtasks
        self._run_id = run_id
        self._client = client
        self._token = token
        self._answers = answers
        self._most_bytes = most_bytes
        self._creating = asyncio.Lock()  # numbers are given in the order of the questions

    @contextlib.asynccontextmanager
    async def serving(self, address: str, port: int = 0) -> AsyncIterator[int]:
        """Listen at ``address`` while the block runs; give the port.

        Raises:
            EnvironmentFailed: that is no address of this machine.
        """
        app = web.Application(middlewares=[self._guarded], client_max_size=_BODY_BYTES)
        app[UNPAGED] = self._subtasks.profile.legacy
        app.add_routes(self._routes())
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, address, port)
            try:
                await site.start()
            except OSError as error:
                hint = (
                    "The client has to run on the machine of its engine." if error.errno == errno.EADDRNOTAVAIL else ""
                )
                raise EnvironmentFailed(
                    f"Can't listen at {address}, where the container of a central function would reach this client: "
                    f"{error.strerror or error}.",
                    hint=hint,
                    address=address,
                ) from error
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.get("/version", self._version),
            web.get("/organization", self._organizations),
            web.get("/organization/{id}", self._organization),
            web.get("/collaboration/{id}", self._collaboration),
            web.get("/collaboration/{id}/organization", self._collaboration_organizations),
            web.get("/study", self._nothing),
            web.get("/node", self._nodes),
            web.get("/node/{id}", self._node),
            web.post("/task", self._create),
            web.get("/task", self._tasks),
            web.get("/task/{id}", self._task),
            web.get("/task/{id}/status", self._status),
            web.get("/task/{id}/result", self._results_of_task),
            web.get("/run", self._runs),
            web.get("/run/{id}", self._run),
            web.get("/result", self._results),
            web.get("/result/{id}", self._result),
            web.get("/blobstream/status", self._no_blob_store),
            web.get("/vpn/algorithm/addresses", self._no_addresses),
        ]

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the run's own container in, and say what goes wrong as a vantage6 server does."""
        try:
            shown = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(shown.encode(errors="surrogateescape"), self._token.encode()):
                raise Unauthenticated("This is not the token of this run.")
            return await handler(request)
        except RunnelError as error:
            status = 400 if isinstance(error, InvalidInput) else status_of(error)[1]
            log.info("a central function was refused", run=self._run_id, path=request.path, error=error.code)
            return web.json_response({"msg": str(error)}, status=status)
        except web.HTTPException as error:
            return web.json_response({"msg": error.reason}, status=error.status)
        except Exception:  # noqa: BLE001 - the last stop before the library, which would print it and answer in HTML
            told = unexpected(log, run=self._run_id, path=request.path)
            return web.json_response({"msg": str(told)}, status=500)

    # ---- the collaboration

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def _no_blob_store(self, _: web.Request) -> web.Response:
        return web.json_response({"blob_store_enabled": False})

    async def _no_addresses(self, _: web.Request) -> web.Response:
        return web.json_response({"addresses": []})

    async def _nothing(self, request: web.Request) -> web.Response:
        return page(request, [])

    async def _know(self) -> None:
        self._subtasks.know((await self._ask(SitesAsk())).sites)

    async def _organizations(self, request: web.Request) -> web.Response:
        await self._know()
        return page(request, self._subtasks.organizations())

    async def _organization(self, request: web.Request) -> web.Response:
        number = _number(request)
        try:
            return web.json_response(self._subtasks.organization(number))
        except NotFound:
            await self._know()
        return web.json_response(self._subtasks.organization(number))

    async def _collaboration(self, request: web.Request) -> web.Response:
        self._require_own(_number(request))
        return web.json_response(
            {
                "id": COLLABORATION,
                "name": "runnel",
                "encrypted": False,
                "organizations": f"/organization?collaboration_id={COLLABORATION}",
                "tasks": f"/task?collaboration_id={COLLABORATION}",
                "nodes": f"/node?collaboration_id={COLLABORATION}",
            }
        )

    async def _collaboration_organizations(self, request: web.Request) -> web.Response:
        self._require_own(_number(request))
        await self._know()
        return web.json_response(self._subtasks.organizations())

    async def _nodes(self, request: web.Request) -> web.Response:
        await self._know()
        return page(request, self._subtasks.nodes())

    async def _node(self, request: web.Request) -> web.Response:
        number = _number(request)
        await self._know()
        for node in self._subtasks.nodes():
            if node["id"] == number:
                return web.json_response(node)
        raise NotFound(f"Node id={number} not found")

    @staticmethod
    def _require_own(collaboration: int) -> None:
        if collaboration != COLLABORATION:
            raise NotFound(f"Collaboration id={collaboration} not found")

    # ---- tasks

    async def _create(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"The body is no JSON: {error}.") from None
        if not isinstance(body, dict):
            raise InvalidInput("The body is no JSON object.")
        if body.get("image") != self._subtasks.image:
            return web.json_response({"msg": "Container-token is not valid"}, status=401)
        async with self._creating:
            await self._know()
            task, groups = self._subtasks.plan(body)
            try:
                for text, sites in groups.items():
                    content = await self._content(decoded(text))
                    part = self._subtasks.part(task, content, sites)
                    asked = NewTask(spec=part.spec.as_json(), sites=part.sites, idempotency_key=part.key)
                    task.tasks.append((await self._ask(asked)).task_id)
            except RunnelError:
                self._subtasks.drop(task)
                raise
        log.info("sub-task", run=self._run_id, tasks=task.tasks, sites=sorted(task.runs))
        return web.json_response(self._subtasks.show(task), status=201)

    async def _content(self, data: bytes) -> Content:
        """Return an input for the network: a large one is pushed before it is named."""
        if len(data) <= MAX_WITHIN:
            return Content(data=base64.b64encode(data))
        ref = BlobRef(sha256=await in_thread(_sha256, data), size_bytes=len(data))
        await self._network.push(self._run_id, memoryview(data), ref, deadline_s=_TRANSFER_S)
        return Content(blob=Blob(sha256=ref.sha256, size_bytes=ref.size_bytes))

    async def _tasks(self, request: web.Request) -> web.Response:
        tasks = self._subtasks.tasks
        for task in tasks:
            await self._look(task)
        return page(request, [*(self._subtasks.show(task) for task in tasks), self._subtasks.own()])

    async def _task(self, request: web.Request) -> web.Response:
        number = _number(request)
        if number == OWN_TASK:
            return web.json_response(self._subtasks.own())
        task = self._subtasks.find(number)
        await self._look(task, _WAIT_S if not task.ended else 0.0)
        return web.json_response(self._subtasks.show(task))

    async def _status(self, request: web.Request) -> web.Response:
        number = _number(request)
        if number == OWN_TASK:
            return web.json_response({"status": self._subtasks.own()["status"]})
        task = self._subtasks.find(number)
        await self._look(task, _WAIT_S)
        return web.json_response({"status": self._subtasks.status(task)})

    async def _look(self, task: SubTask, wait_s: float = 0.0) -> None:
        """Ask what has become of a sub-task, until it has ended or for so long."""
        if task.ended:
            return
        try:
            looks = [self._ask(LookAtTask(task_id=each, wait_s=wait_s), _WAIT_S + wait_s) for each in task.tasks]
            self._subtasks.heard(task, await _together(looks))
        except DeadlineExceeded as error:
            # Of a network that was lost for a while the container hears what was known before, and asks again.
            log.info("nobody told of a sub-task", run=self._run_id, tasks=task.tasks, detail=str(error))

    # ---- runs and results

    def _tasks_asked(self, request: web.Request) -> list[SubTask]:
        text = request.query.get("task_id")
        if text is None:
            return self._subtasks.tasks
        number = integer(text, "task_id")
        return [] if number == OWN_TASK else [self._subtasks.find(number)]

    async def _listed(self, request: web.Request) -> list[tuple[int, SubTask, str]]:
        """Return number, task and site of the runs that are asked for, the newest first."""
        tasks = self._tasks_asked(request)
        for task in tasks:
            await self._look(task)
        return sorted(((task.runs[site], task, site) for task in tasks for site in task.runs), reverse=True, key=_first)

    async def _runs(self, request: web.Request) -> web.Response:
        runs = await self._listed(request)
        return page(request, [self._subtasks.show_run(task, site) for _, task, site in runs])

    async def _run(self, request: web.Request) -> web.Response:
        task, site = self._subtasks.find_run(_number(request))
        await self._look(task)
        return web.json_response(self._subtasks.show_run(task, site))

    async def _result(self, request: web.Request) -> web.Response:
        task, site = self._subtasks.find_run(_number(request))
        await self._look(task)
        return web.json_response(await self._with_result(task, site))

    async def _results(self, request: web.Request) -> web.Response:
        runs = await self._listed(request)
        number, size = page_asked(request, len(runs))
        # What is not on the page is not fetched.
        shown: list[Any] = [self._subtasks.show_result(task, site) for _, task, site in runs]
        for place in range((number - 1) * size, min(number * size, len(runs))):
            _, task, site = runs[place]
            shown[place] = await self._with_result(task, site)
        return page(request, shown)

    async def _results_of_task(self, request: web.Request) -> web.Response:
        task = self._subtasks.find(_number(request))
        await self._look(task)
        return web.json_response([await self._with_result(task, site) for site in task.runs])

    async def _with_result(self, task: SubTask, site: str) -> dict[str, Any]:
        shown = self._subtasks.show_result(task, site) | {"node": {"ip": None}, "ports": []}
        run = task.told.get(site)
        if run is not None and run.state == "done":
            shown["result"] = await self._output(run)
        return shown

    async def _output(self, run: SubRun) -> str:
        """Return what a run gave out, in base64; it is never looked into."""
        files = run.result.files if run.result is not None else ()
        ref = next((file.blob for file in files if file.name == "output"), None)
        if ref is None or not ref.size_bytes:
            return ""
        if ref.size_bytes > self._most_bytes:
            raise TooLarge(
                f"The result of {run.site} has {ref.size_bytes:,} bytes; this site takes {self._most_bytes:,}.",
                site=run.site,
            )
        await in_thread(self._answers.mkdir, exist_ok=True)
        target = self._answers / ref.sha256
        if not await in_thread(target.exists):
            await self._network.fetch(ref, target, deadline_s=_TRANSFER_S)
        return await in_thread(_as_base64, target)

    # ----

    async def _ask(self, body: SitesAsk | NewTask | LookAtTask, deadline_s: float = _ANSWER_S) -> TaskAnswer:
        ask = TaskAsk(run_id=self._run_id, client=self._client, body=body)
        try:
            return await self._network.ask(ask, deadline_s=deadline_s)
        except Unauthenticated as error:
            # Of this client, not of the container, which would be told that its own token is bad.
            raise Forbidden(f"The network does not answer this site: {error.message}") from error


async def _together(looks: Sequence[Coroutine[Any, Any, TaskAnswer]]) -> Sequence[TaskAnswer]:
    try:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(each) for each in looks]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others were ended for it
    return [each.result() for each in asked]


def _first(entry: tuple[int, SubTask, str]) -> int:
    return entry[0]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _as_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _number(request: web.Request) -> int:
    return integer(request.match_info["id"], "An id")
