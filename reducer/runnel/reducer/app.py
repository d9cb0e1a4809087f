"""A reducer process: the object graph and its life."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import structlog

from runnel.common.blobs import KEPT_HEARTBEATS, Spool
from runnel.common.descriptors import raise_descriptor_limit
from runnel.common.disk import state_folder, write_bytes
from runnel.common.endpoints import remove_endpoints, write_endpoints
from runnel.common.ids import new_id, new_secret
from runnel.common.metrics import LoopLag
from runnel.compute_package import read_public_key
from runnel.reducer.access_tokens import AccessTokens
from runnel.reducer.callers import Callers
from runnel.reducer.domain.values import DEFAULT_ORGANISATION, Role
from runnel.reducer.engine.engine import Engine
from runnel.reducer.http import HttpServer, create_app
from runnel.reducer.metrics import reducer_page
from runnel.reducer.operations import Operations
from runnel.reducer.pytaskmanager import PtmMaster
from runnel.reducer.rpc.gateway import Gateway
from runnel.reducer.rpc.run_asks import RunAsks
from runnel.reducer.rpc.run_files import RunFiles
from runnel.reducer.server_functions.functions import Permission, ServerFunctions
from runnel.reducer.server_functions.step import Confinement
from runnel.reducer.settings import ReducerSettings
from runnel.reducer.store import access
from runnel.reducer.store.blob_place import opened_blobs
from runnel.reducer.store.database import Database
from runnel.reducer.store.database_url import database_url, sqlite_file
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.state_lock import StateLock
from runnel.reducer.uploads import Uploads
from runnel.transport import BlobServer, DirectoryServer, RpcServer, UplinkServer, parse_address
from runnel.transport.credentials import CredentialIssuer, CredentialVerifier, load_or_create_key
from runnel.transport.way_up import require_loopback, server_tls

log = structlog.get_logger()

_DESCRIPTORS = 16_384
OPERATOR_TOKEN = "operator.token"  # noqa: S105 - the name of a file


class ReducerServer:
    """What serves, once it does: the addresses, and the parts for those who run a reducer inside their own process."""

    def __init__(self, rpc: RpcServer, http: HttpServer, engine: Engine) -> None:
        self.rpc_address = rpc.address
        self.http_address = http.address
        self.url = http.url
        self.engine = engine


@contextlib.asynccontextmanager
async def serve_reducer(settings: ReducerSettings) -> AsyncIterator[ReducerServer]:
    """Serve until the block is left; sessions go on at the next start.

    When another reducer takes over the database, the task inside of the block is cancelled and leaving raises an
    exception group with an ``Unreachable`` that says who.

    Raises:
        BadSettings, Conflict, StorageFull, Unreachable: it can't be served like this.
    """
    if settings.insecure:
        require_loopback(settings.rpc, settings.http)
    tls = server_tls(
        settings.tls_cert,
        settings.tls_key,
        settings.rpc,
        settings.http,
        allow_plaintext=settings.allow_plaintext or settings.insecure,
    )
    state = settings.state
    # Every client asks here for its place, and many may do so at the same time.
    raise_descriptor_limit(_DESCRIPTORS)
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.to_thread(state_folder, state)
        stack.enter_context(StateLock(state))
        spool = Spool(state / "spool", reuse=True)
        await asyncio.to_thread(spool.wipe)
        url = database_url(settings.database, state)
        file = sqlite_file(url)
        if file is not None and file.parent.resolve() != state.resolve():
            # The lock on the state folder does not cover a database elsewhere.
            await asyncio.to_thread(file.parent.mkdir, parents=True, exist_ok=True)
            stack.enter_context(StateLock(file.parent, name=f"{file.name}.lock", what=f"the database {file}"))
        database = Database(url, name=settings.name, lease_s=settings.lease_s)
        await stack.enter_async_context(database)
        # After the database, whose lease says that nobody else acts on its blobs.
        blobs = await stack.enter_async_context(
            opened_blobs(
                settings.blobs,
                state,
                spares=spool.spares,
                cache_bytes=settings.blob_cache_bytes,
                allow_plaintext=settings.allow_plaintext,
            )
        )
        journal = Journal(database)
        if not settings.insecure:
            await _first_token(journal, state)
        key = load_or_create_key(state / "credential.key")
        issuer = CredentialIssuer(key)
        # What steps of a process before this one left; they ended with it.
        await asyncio.to_thread(shutil.rmtree, state / "server-functions", ignore_errors=True)
        functions = ServerFunctions(blobs, state / "server-functions", _permission(settings, file))
        engine = Engine(
            journal=journal,
            blobs=blobs,
            partials=state / "partials",
            name=settings.name,
            organisation=DEFAULT_ORGANISATION,
            keep_models=settings.keep_models,
            keep_results=timedelta(days=settings.keep_results) if settings.keep_results else None,
            functions=functions,
        )
        await stack.enter_async_context(engine)
        run_spool = Spool(state / "run-spool", durable=False)  # what is adopted as a blob is made to last then
        await asyncio.to_thread(run_spool.wipe)
        gateway = Gateway(
            engine=engine,
            journal=journal,
            blobs=blobs,
            spool=spool,
            partials=state / "partials",
            run_files=RunFiles(
                engine.tasks,
                journal=journal,
                blobs=blobs,
                spool=run_spool,
                keep_s=KEPT_HEARTBEATS * settings.heartbeat_s,
                max_bytes=settings.max_result_bytes,
            ),
            issuer=issuer,
            insecure=settings.insecure,
            heartbeat_s=settings.heartbeat_s,
            credential_ttl_s=settings.credential_ttl_s,
            direct_capacity=settings.direct_clients,
        )
        uplink = UplinkServer(
            gateway,
            CredentialVerifier(issuer.public_key),
            asks=RunAsks(engine, journal),
            heartbeat_s=settings.heartbeat_s,
        )
        rpc = RpcServer(
            settings.rpc,
            tls=tls,
            allow_plaintext=settings.allow_plaintext,
            services=[uplink.service, DirectoryServer(gateway).service],
        )
        operations = Operations(
            engine=engine,
            journal=journal,
            blobs=blobs,
            callers=Callers(journal, AccessTokens(key), insecure=settings.insecure),
            functions=functions,
            rpc_address=lambda: rpc.address,
            uploads=Uploads(
                journal=journal,
                blobs=blobs,
                max_package_bytes=settings.max_package_bytes,
                max_model_bytes=settings.max_model_bytes,
            ),
            max_blob_bytes=settings.max_result_bytes,
        )
        port, told = settings.blob_port, settings.advertise_blob_port
        for part in (rpc, BlobServer(uplink, settings.rpc, port, told=told, tls=tls), uplink):
            await stack.enter_async_context(part)
        lag = LoopLag()
        stack.callback(lag.close)
        api = create_app(
            operations,
            insecure=settings.insecure,
            metrics=reducer_page(engine, uplink, state, lag),
            metrics_open=settings.metrics == "open" or parse_address(settings.http, key="http").loopback,
            ptm=PtmMaster(operations, journal),
            registries=settings.registries,
        )
        http = HttpServer(api, settings.http, tls, stop_s=settings.grace_s)
        await stack.enter_async_context(http)
        called = [str(parse_address(address).to_call()) for address in (rpc.address, http.address)]
        write_endpoints(state, rpc=called[0], http=called[1], tls=tls is not None)
        stack.callback(remove_endpoints, state)
        log.info(
            "ready",
            rpc=rpc.address,
            blob_port=uplink.blob_port,
            http=http.url,
            state=str(state),
            insecure=settings.insecure,
        )
        yield ReducerServer(rpc, http, engine)
        log.info("stopping")


async def run_reducer(settings: ReducerSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set."""
    async with serve_reducer(settings):
        await stop.wait()


def confinement(settings: ReducerSettings) -> Confinement:
    """Return what functions of packages can reach here.

    A network without tokens is on the loopback, where clients run whatever comes too. Elsewhere who may start sessions
    is not who may run programs beside the reducer's keys, so the operator has to say it.
    """
    return Confinement(settings.server_functions or ("sandbox" if settings.insecure else "off"))


def _permission(settings: ReducerSettings, database: Path | None) -> Permission:
    """Return what functions of packages may do here; none of them sees the state, the ``database`` or the key."""
    hidden = [settings.state, settings.tls_key]
    if database is not None:
        hidden += [database.with_name(f"{database.name}{end}") for end in ("", "-wal", "-shm", "-journal")]
    return Permission(
        confinement=confinement(settings),
        signers=frozenset(map(read_public_key, settings.server_functions_signers)),
        memory_bytes=settings.server_functions_memory_bytes,
        timeout_s=settings.server_functions_timeout_s,
        hidden=tuple(path.resolve() for path in hidden if path is not None),
    )


async def _first_token(journal: Journal, state: Path) -> None:
    """Make the operator's token at the first start; it lies in a file that only the operator can read."""
    file = state / OPERATOR_TOKEN
    async with journal.database.read() as tx:
        tokens = await access.tokens(tx, None, None, 1)
    if tokens.items:
        return
    secret = new_secret()
    async with journal.transaction() as tx:
        await asyncio.to_thread(write_bytes, file, f"{secret}\n".encode(), mode=0o600)
        token = await access.add_token(
            tx.session, new_id("tok"), secret, DEFAULT_ORGANISATION, Role.OPERATOR, "first start", None
        )
        await tx.record("token.created", DEFAULT_ORGANISATION, token=token.id, role=token.role.value, name=token.name)
    log.info("operator token made", file=str(file))
