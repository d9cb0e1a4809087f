"""A place for files at a site, as PyTaskManager's FileService: others bring them, containers of the site fetch them.

A trusted third party so receives what parties have encrypted for each other; a file is known by a random name only, and
read by nobody but this machine and its containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import ipaddress
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO

import structlog
from aiohttp import BodyPartReader, ClientPayloadError, MultipartReader, web
from aiohttp.typedefs import Handler
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from runnel.common.disk import state_folder, sync_folder
from runnel.common.errors import BadSettings, Conflict, InvalidInput, RunnelError, StorageFull, TooLarge
from runnel.common.settings import OWN_PREFIX_ONLY, Bytes
from runnel.common.storage import require_room, storage_errors, sync_file
from runnel.transport import parse_address
from runnel.transport.status import problem_of

log = structlog.get_logger()

FIELD = "fileObj"
DEFAULT_READERS = ("127.0.0.0/8", "::1/128", "172.17.0.0/16")
"""This machine, and the containers on an engine's usual bridge."""

_NAME = "{name:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}}"
_PART = ".part"
_BLOCK_BYTES = 1 << 20

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


class FileServiceSettings(BaseModel):
    """Read from flags, ``RUNNEL_FILES_…``, a TOML file and these defaults, in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Without the prefix of their own they mean something else.
    listen: str = Field(
        "127.0.0.1:5001",
        json_schema_extra={OWN_PREFIX_ONLY: True},
        description="HOST:PORT, an address that containers and uploaders reach.",
    )
    folder: Path = Field(Path("client-files"), description="Folder of the files.")
    readers: list[Annotated[str, AfterValidator(_network)]] = Field(
        default_factory=lambda: list(DEFAULT_READERS),
        description="Networks that may fetch files; others get 403.",
    )
    token: SecretStr | None = Field(
        None,
        json_schema_extra={OWN_PREFIX_ONLY: True},
        description="Uploads have to bring it as `Authorization: Bearer`; by default anybody may upload.",
    )
    max_file_bytes: Bytes = Field(1 << 30, gt=0, description="Of one file.")
    keep_free_bytes: Bytes = Field(1 << 30, ge=0, description="So much of the disk stays free.")
    grace_s: float = Field(10.0, ge=0, description="Seconds for what is under way when it is told to stop.")


class FileService:
    """Serves while it is entered.

    Args:
        settings: where and for whom.

    Entering raises BadSettings or Conflict when it can't listen there or has no folder.
    """

    def __init__(self, settings: FileServiceSettings) -> None:
        self._settings = settings
        self._readers: Sequence[_Network] = [ipaddress.ip_network(text) for text in settings.readers]
        self._folder = settings.folder
        app = web.Application(middlewares=[_errors])
        app.router.add_get("/", _index)
        app.router.add_post("/addFile", self._add)
        app.router.add_get(f"/file/{_NAME}", self._fetch)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=settings.grace_s)
        self.address = ""

    async def __aenter__(self) -> FileService:
        where = parse_address(self._settings.listen, key="listen")
        await asyncio.to_thread(self._begin)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, where.host, where.port).start()
        except OSError as error:
            await self._runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise Conflict(f"Something listens on {where} already.", hint="Choose another --listen.") from error
            raise BadSettings(
                f"Can't listen on {where}: {error.strerror or error}.", hint="Choose an address of this machine."
            ) from error
        host, port = self._runner.addresses[0][:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        log.info("files serving", address=self.address, folder=str(self._folder), uploads_by_token=self._by_token)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @property
    def _by_token(self) -> bool:
        return self._settings.token is not None

    def _begin(self) -> None:
        state_folder(self._folder)
        for left in self._folder.glob(f"*{_PART}"):
            left.unlink(missing_ok=True)

    async def _add(self, request: web.Request) -> web.Response:
        self._require_token(request)
        # A body that is announced to be too large is not read at all.
        if request.content_length is not None and request.content_length > self._settings.max_file_bytes + _BLOCK_BYTES:
            raise self._too_large()
        name = str(uuid.uuid4())
        async for part in await _multipart(request):
            if isinstance(part, BodyPartReader) and part.name == FIELD:
                size = await self._store(part, self._folder / name)
                log.info("file stored", file=name, size_bytes=size, remote=request.remote)
                return web.json_response({"status": "success", "uuid": name})
        raise InvalidInput(f"The form has no file {FIELD}.", hint=f"curl -F {FIELD}=@FILE …/addFile")

    async def _store(self, part: BodyPartReader, path: Path) -> int:
        beside = path.with_name(path.name + _PART)
        size = 0
        try:
            with storage_errors(path):
                file = await asyncio.to_thread(beside.open, "xb")
            with contextlib.closing(file):
                while block := await part.read_chunk(_BLOCK_BYTES):
                    size += len(block)
                    if size > self._settings.max_file_bytes:
                        raise self._too_large()
                    await asyncio.to_thread(self._write, file, block)
            await asyncio.to_thread(_publish, beside, path)
        except ClientPayloadError as error:
            raise InvalidInput("The upload ended before its end.") from error
        finally:
            await asyncio.to_thread(beside.unlink, missing_ok=True)
        return size

    def _write(self, file: BinaryIO, block: bytes) -> None:
        require_room(self._folder, len(block) + self._settings.keep_free_bytes)
        with storage_errors(self._folder):
            file.write(block)

    async def _fetch(self, request: web.Request) -> web.StreamResponse:
        if not self._may_read(request.remote):
            log.warning("a file was asked for from elsewhere", remote=request.remote)
            return _answer(403, "Only this machine and its containers may fetch files.")
        path = self._folder / request.match_info["name"]
        if not await asyncio.to_thread(path.is_file):
            return _answer(404, "There is no such file.")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    def _may_read(self, remote: str | None) -> bool:
        try:
            address = ipaddress.ip_address((remote or "").partition("%")[0])
        except ValueError:  # not a socket of the internet's kind
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._readers)

    def _require_token(self, request: web.Request) -> None:
        if self._settings.token is None:
            return
        wanted = f"Bearer {self._settings.token.get_secret_value()}"
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), wanted.encode()):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})

    def _too_large(self) -> TooLarge:
        most = self._settings.max_file_bytes
        return TooLarge(f"A file has at most {most:,} bytes here.", limit_bytes=most)


async def run_file_service(settings: FileServiceSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        BadSettings, Conflict: it can't be served like this.
    """
    async with FileService(settings) as service:
        log.info("ready", address=service.address)
        await stop.wait()


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except StorageFull as error:
        log.warning("no room for a file", free_bytes=error.fields.get("free_bytes"))
        return _answer(507, "There is no room for the file.")
    except RunnelError as error:
        return _answer(problem_of(error)["status"], str(error))


def _answer(status: int, message: str) -> web.Response:
    return web.json_response({"status": "error", "message": message}, status=status)


async def _index(request: web.Request) -> web.Response:
    return web.Response(text="Hello, World")


async def _multipart(request: web.Request) -> MultipartReader:
    wrong = InvalidInput("A file is uploaded as a form: multipart/form-data with a boundary.")
    if not request.content_type.startswith("multipart/"):
        raise wrong
    try:
        return await request.multipart()
    except ValueError as error:
        raise wrong from error


def _publish(beside: Path, path: Path) -> None:
    sync_file(beside)
    beside.rename(path)
    sync_folder(path.parent)
