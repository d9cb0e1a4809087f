"""A client process: the object graph and its life."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from runnel.client.agent import ClientAgent
from runnel.client.audit import AUDIT_FILE, AuditLog, utc_now
from runnel.client.data import DatabaseConfig, catalogue_of, database_of, read_databases
from runnel.client.domain.cage import NO_NETWORK, Cage
from runnel.client.domain.policy import Policy
from runnel.client.gate import Gate
from runnel.client.metrics import client_page
from runnel.client.policy_file import SitePolicy, default_policy, read_policy
from runnel.client.policy_watch import PolicyWatch, on_hangup
from runnel.client.reviews import Reviews
from runnel.client.runtimes import Installs, ProcessRuntime, entry_point_variables, site_variables
from runnel.client.runtimes.containers import in_containers
from runnel.client.runtimes.registry_passwords import RegistryPasswords
from runnel.client.settings import ClientSettings
from runnel.client.tasks.pytaskmanager_site import read_pytaskmanager
from runnel.client.tasks.site_graph import site_tasks
from runnel.client.tasks.task_cage import task_cage
from runnel.client.tasks.task_engine import EngineSettings
from runnel.common.disk import state_folder
from runnel.common.endpoints import note_attachment, remove_endpoints, write_endpoints
from runnel.common.errors import BadSettings
from runnel.common.metrics import LoopLag, MetricsServer
from runnel.common.protocol import Hello, NodeKind
from runnel.common.tasks import Contract, Resources
from runnel.transport import UplinkLink, parse_address
from runnel.transport.way_up import client_tls, load_or_create_identity, require_loopback

if TYPE_CHECKING:
    from runnel.client.runtimes.docker import DockerRuntime

log = structlog.get_logger()


def site_databases(data: Mapping[str, str]) -> dict[str, Path | str]:
    """Return the databases of the settings; one with ``://`` is an address, anything else a path that must exist.

    Raises:
        BadSettings: a path does not exist.
    """
    databases: dict[str, Path | str] = {}
    for name, where in data.items():
        if "://" in where:
            databases[name] = where
        elif Path(where).exists():
            databases[name] = Path(where).absolute()
        else:
            raise BadSettings(
                f"The database {name!r} is to be {where}, and there is no such file or folder.",
                hint="Correct --data NAME=PATH.",
                database=name,
            )
    return databases


def site_data(data: Mapping[str, str], databases: Path | None, environ: Mapping[str, str]) -> dict[str, DatabaseConfig]:
    """Return databases by name: those of ``--data`` and those of a file.

    Raises:
        BadSettings: a path does not exist, the file is wrong, or one name is in both.
    """
    found = {name: database_of(name, where) for name, where in site_databases(data).items()}
    told = {} if databases is None else read_databases(databases, environ)
    if twice := sorted(found.keys() & told.keys()):
        raise BadSettings(
            f"The databases {', '.join(twice)} are in {databases} and in --data.", hint="Name each in one of them."
        )
    return found | told


def site_installs(settings: ClientSettings) -> Installs:
    """Return what the settings say about environments.

    Raises:
        BadSettings: a folder with wheels does not exist.
    """
    for place in settings.find_links:
        if "://" not in place and not Path(place).is_dir():
            raise BadSettings(
                f"Wheels are to be found in {place}, and there is no such folder.", hint="Correct --find-links."
            )
    return Installs(
        allowed=settings.installs,
        # uv runs in the folders of packages.
        find_links=tuple(one if "://" in one else str(Path(one).absolute()) for one in settings.find_links),
        fedn=settings.fedn,
        most_bytes=settings.environments_bytes,
        most_days=settings.environments_days,
    )


def site_cage(policy: Policy) -> Cage:
    """Return the cage of containers as the policy widens or narrows it.

    Of the networks that it allows it is ``none`` if that is one of them, else the first by name.

    Raises:
        BadSettings: a limit of the policy is too small for a container, or a network is none of an engine.
    """
    names = ("memory_bytes", "cpus", "pids", "tmpfs_bytes", "shm_bytes", "disk_bytes")
    limits = {name: getattr(policy.limits, name) for name in names}
    networks = sorted(policy.networks or (), key=lambda name: (name != NO_NETWORK, name))
    wanted: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    return Cage(network=networks[0] if networks else NO_NETWORK, **wanted)


def _installs_by(settings: ClientSettings, policy: Policy) -> Installs:
    installs = site_installs(settings)
    return dataclasses.replace(installs, allowed=installs.allowed and policy.installs)


def _runtime(
    settings: ClientSettings, policy: Policy, node_id: str, environ: Mapping[str, str]
) -> ProcessRuntime | DockerRuntime:
    installs = _installs_by(settings, policy)
    if settings.runtime == "process":
        return ProcessRuntime(
            environments=settings.state / "environments",
            environ=environ,
            warm=settings.warm,
            installs=installs,
        )
    return in_containers(
        client=node_id,
        state=settings.state,
        environ=environ,
        host=settings.docker_host,
        config=settings.docker_config,
        base_image=settings.docker_image,
        files=settings.docker_files,
        cage=site_cage(policy),
        installs=installs,
    )


def _network(settings: ClientSettings, cage: Cage) -> str:
    """Return what entry points reach, as policies call it."""
    return "host" if settings.runtime == "process" else cage.network


@contextlib.asynccontextmanager
async def _followed_policy(
    settings: ClientSettings, gate: Gate, runtime: ProcessRuntime | DockerRuntime, databases: Collection[str]
) -> AsyncIterator[None]:
    """Take over what changes in the site's policy file while the block runs."""
    if settings.policy is None:
        yield
        return

    async def adopt(site: SitePolicy) -> None:
        if site.fingerprint == gate.policy.fingerprint:
            return
        cage, installs = site_cage(site.policy), _installs_by(settings, site.policy)
        await asyncio.to_thread(gate.follow, site, network=_network(settings, cage))
        runtime.follow(installs=installs, cage=cage)
        log.info("the policy has changed", policy=site.source, fingerprint=site.fingerprint)

    async def reject(problem: str) -> None:
        await asyncio.to_thread(gate.keep, problem)

    read = functools.partial(site_policy, settings, databases)
    watch = PolicyWatch(settings.policy, read=read, adopt=adopt, reject=reject)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch.run(), name="policy")
        with on_hangup(watch.look_now):
            yield
        watching.cancel()


def site_policy(settings: ClientSettings, databases: Collection[str] | None = None) -> SitePolicy:
    """Return the policy of the settings, or the default for where the network is.

    Args:
        settings: of the client.
        databases: the names of its databases; None: those of ``--data``.

    Raises:
        BadSettings: the policy file is wrong, names a database that this site does not have, or gives tasks what no
            container can have.
    """
    if settings.policy is None:
        return default_policy(loopback=parse_address(settings.network, key="network").loopback)
    site = read_policy(settings.policy)
    task_cage(site.policy, Resources())  # raises what no container can have
    known = settings.data.keys() if databases is None else databases
    if unknown := sorted((site.policy.databases or {}).keys() - set(known)):
        raise BadSettings(
            f"The policy file {settings.policy} names the databases {', '.join(unknown)}, which this client does not"
            " have.",
            hint=f"It has {', '.join(sorted(known)) or 'none'}; correct --data or the policy.",
        )
    return site


def site_contracts(settings: ClientSettings) -> dict[Contract, Mapping[str, str]]:
    """Return what the site has set for the contracts of containers.

    Raises:
        BadSettings: a file is wrong.
    """
    if settings.pytaskmanager is None:
        return {}
    return {Contract.PYTASKMANAGER: read_pytaskmanager(settings.pytaskmanager)}


async def run_client(
    settings: ClientSettings,
    stop: asyncio.Event,
    environ: Mapping[str, str] | None = None,
    *,
    clock: Callable[[], datetime] = utc_now,
) -> None:
    """Work until ``stop`` is set; then end what runs, for ``grace_s`` at most, and go.

    Args:
        settings: of the client.
        stop: ends it.
        environ: the process's variables.
        clock: by which the hours of the site's policy are judged.

    Raises:
        BadSettings: a setting, or the policy, does not fit.
        CorruptData: the audit log was changed by somebody; nothing runs then.
        Unauthenticated, Forbidden, Conflict: the network does not want this client.
    """
    environ = os.environ if environ is None else environ
    if settings.insecure:
        require_loopback(settings.network)
    data = await asyncio.to_thread(site_data, settings.data, settings.databases, environ)
    databases = {name: each.where for name, each in data.items()}
    catalogue = catalogue_of(data.values())
    policy = await asyncio.to_thread(site_policy, settings, data)
    variables = site_variables(settings.env, environ)
    await asyncio.to_thread(RegistryPasswords(settings.docker_config, environ).require)
    contract_settings = await asyncio.to_thread(site_contracts, settings)
    # Entry points and the installer run in other folders.
    settings = settings.model_copy(update={"state": settings.state.absolute()})
    await asyncio.to_thread(state_folder, settings.state)
    identity = load_or_create_identity(settings.state, kind="client", name=settings.name)
    entry_point_variables(client_name=identity.name, data=databases, site=variables)  # raises what does not fit

    def link(hello: Callable[[], Hello]) -> UplinkLink:
        return UplinkLink(
            settings.network,
            name=identity.name,
            node_id=identity.node_id,
            kind=NodeKind.CLIENT,
            token=None if settings.token is None else settings.token.get_secret_value(),
            hello=hello,
            tls=client_tls(settings.network, settings.tls_ca, plaintext=settings.allow_plaintext),
            allow_plaintext=settings.allow_plaintext,
            prefer=settings.prefer,
        )

    async with (
        _runtime(settings, policy.policy, identity.node_id, environ) as runtime,
        contextlib.AsyncExitStack() as stack,
    ):
        gate = Gate(
            client=identity.name,
            site=policy,
            reviews=Reviews(settings.state),
            audit=AuditLog(settings.state / AUDIT_FILE, clock=clock),
            runtime_name=settings.runtime,
            network=_network(settings, site_cage(policy.policy)),
            clock=clock,
        )
        agent = ClientAgent(
            name=identity.name,
            node_id=identity.node_id,
            version=version("runnel"),
            state=settings.state,
            link_factory=link,
            runtime=runtime,
            gate=gate,
            databases=databases,
            variables=variables,
            parallel=settings.parallel,
            run_timeout_s=settings.run_timeout_s,
            tasks=lambda link: site_tasks(
                link,
                network=link,
                name=identity.name,
                state=settings.state,
                engine=EngineSettings(
                    client=identity.node_id,
                    state=settings.state,
                    environ=environ,
                    host=settings.docker_host,
                    config=settings.docker_config,
                    most_bytes=settings.environments_bytes,
                    most_days=settings.environments_days,
                    files=settings.docker_files,
                ),
                policy=lambda: gate.policy.policy,
                audit=gate.audit,
                parallel=settings.parallel_tasks,
                databases=data,
                variables=variables,
                settings=contract_settings,
                time_s=settings.run_timeout_s,
                clock=clock,
            ),
            catalogue=catalogue,
            on_attachment=functools.partial(note_attachment, settings.state),
        )
        await asyncio.to_thread(gate.begin, client=identity.name, version=version("runnel"), network=settings.network)
        if settings.metrics is not None:
            lag, where = LoopLag(), parse_address(settings.metrics, key="metrics")
            stack.callback(lag.close)
            page = client_page(agent, settings.state, lag)
            await stack.enter_async_context(MetricsServer(page, where.host, where.port))
        write_endpoints(settings.state, attached_to="")
        log.info(
            "ready",
            name=identity.name,
            network=settings.network,
            databases=sorted(databases),
            published=[each.id for each in catalogue.datasets],
            policy=policy.source,
        )
        try:
            async with agent, _followed_policy(settings, gate, runtime, data), asyncio.TaskGroup() as group:
                way_up = group.create_task(agent.run(), name="way up")
                stopped = group.create_task(stop.wait(), name="stop")
                await asyncio.wait((way_up, stopped), return_when=asyncio.FIRST_COMPLETED)
                stopped.cancel()
                if not way_up.done():
                    log.info("stopping", running=agent.working)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(settings.grace_s):
                            await agent.drain()
                    way_up.cancel()
        finally:
            remove_endpoints(settings.state)
