"""The demonstration from its first process to its last."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from runnel.common.endpoints import Endpoints, read_endpoints
from runnel.common.errors import RunnelError
from runnel.common.lifetime import first_error
from runnel.compute_package import pack
from runnel.demo.commands import (
    client_arguments,
    combiner_arguments,
    reducer_arguments,
    runnel_argv,
    start_script,
)
from runnel.demo.example import Accuracies, Example
from runnel.demo.following import Following
from runnel.demo.options import EPOCHS, DemoOptions
from runnel.demo.outcome import Outcome
from runnel.demo.processes import TAIL_LINES, DemoFailed, Processes, own_processes
from runnel.demo.scene import REDUCER, Scene
from runnel.demo.screens import Screen, Shown
from runnel.demo.work_folder import MODEL, keep_model, work_folder
from runnel.sdk import Network, Session

READY_S = 90.0
ROUND_S = 120.0


class Interrupted(Exception):
    """A person asked the demonstration to stop."""


async def run_demo(options: DemoOptions, screen: Screen, *, stop: asyncio.Event, environ: Mapping[str, str]) -> Outcome:
    """Start a network, train, compare and end the network.

    However this ends, no process of it is alive afterwards; without ``options.keep`` nothing is left of it but the
    model.

    Args:
        options: what is to be shown.
        screen: where it is shown.
        stop: ends it when set.
        environ: of which the processes get all but the settings of Runnel.

    Raises:
        Interrupted: ``stop`` was set.
        Conflict: the folder already holds something else.
        DemoFailed: a process ended on its own; its last lines have been shown.
        RunnelError: anything else that did not go as it should; the message tells.
    """
    began = time.monotonic()
    scene = Scene(rounds=options.rounds)
    async with work_folder(options) as work:
        try:
            with Shown(screen, scene):
                async with asyncio.TaskGroup() as group:
                    painting = group.create_task(screen.run())
                    outcome = await _perform(options, scene, screen, work, stop, environ)
                    painting.cancel()
                scene.act = "Done"
        except BaseExceptionGroup as group:
            cause = _cause(group)
            if cause is None:
                raise
            if isinstance(cause, DemoFailed) and cause.tail:
                screen.remark(f"The last lines of {cause.process}:", cause.tail)
            if options.keep and not isinstance(cause, Interrupted):
                screen.remark(f"The logs are kept in {work / 'logs'}.")
            raise cause from group
    return dataclasses.replace(outcome, seconds=time.monotonic() - began)


async def _perform(
    options: DemoOptions,
    scene: Scene,
    screen: Screen,
    work: Path,
    stop: asyncio.Event,
    environ: Mapping[str, str],
) -> Outcome:
    async with own_processes(work, environ) as processes, asyncio.TaskGroup() as group:
        stopping = group.create_task(_until(stop))
        demonstration = Demonstration(options, scene, screen, work, processes, group)
        outcome = await demonstration.run()
        stopping.cancel()
    return outcome


class Demonstration:
    """The acts, in their order."""

    def __init__(
        self,
        options: DemoOptions,
        scene: Scene,
        screen: Screen,
        work: Path,
        processes: Processes,
        group: asyncio.TaskGroup,
    ) -> None:
        self._options = options
        self._scene = scene
        self._screen = screen
        self._work = work
        self._processes = processes
        self._group = group
        self._example = Example(options, work, processes)
        self._following = Following(scene, screen)
        self._components: dict[str, list[str]] = {}

    def act(self, text: str) -> None:
        """Tell what is going on."""
        self._scene.act = text
        self._screen.act(text)

    async def run(self) -> Outcome:
        """Do everything but end the network."""
        options = self._options
        self.act(
            f"Starting a network: {REDUCER}, {_number(options.combiners, 'combiner')}, "
            f"{_number(options.clients, 'client')}"
        )
        async with asyncio.TaskGroup() as making:
            reducer = making.create_task(self._start_reducer())
            making.create_task(self._example.make_data())
            making.create_task(self._example.make_seed())
            making.create_task(asyncio.to_thread(pack, options.example, self._package))
        rpc, url = reducer.result()
        following = self._group.create_task(self._following.run(url))
        await self._start_nodes(rpc)
        outcome = await self._train(url)
        self.act("Ending the network")
        self._following.stop()
        following.cancel()
        return outcome

    @property
    def _package(self) -> Path:
        return self._work / "digits.tar.gz"

    async def _start_reducer(self) -> tuple[str, str]:
        """Return the reducer's address for nodes and its URL for people."""
        await self._start(REDUCER, reducer_arguments())
        endpoints = await asyncio.to_thread(read_endpoints, self._work / REDUCER)
        rpc, http = _addresses(endpoints)
        self._components[REDUCER] = reducer_arguments(rpc=rpc, http=http)
        return rpc, f"http://{http}"

    async def _start_nodes(self, network: str) -> None:
        """Combiners first: clients that come before them would attach to the reducer itself."""
        options = self._options
        await self._start_all(
            {f"combiner-{n}": combiner_arguments(f"combiner-{n}", network) for n in range(1, options.combiners + 1)}
        )
        await self._following.until(
            lambda scene: len(scene.combiners) >= options.combiners, silence_s=READY_S, what="combiners to attach"
        )
        await self._start_all(
            {f"site-{n}": client_arguments(f"site-{n}", network) for n in range(1, options.clients + 1)}
        )
        await self._following.until(
            lambda scene: len(scene.clients) >= options.clients, silence_s=READY_S, what="clients to attach"
        )

    async def _start_all(self, components: Mapping[str, list[str]]) -> None:
        async with asyncio.TaskGroup() as starting:
            for name, arguments in components.items():
                starting.create_task(self._start(name, arguments))
        self._components |= components

    async def _start(self, name: str, arguments: list[str]) -> None:
        await self._processes.start(name, [*runnel_argv(), *arguments], timeout_s=READY_S)

    async def _train(self, url: str) -> Outcome:
        options = self._options
        self.act(f"Training for {_number(options.rounds, 'round')}; the data stay at their sites")
        session = await asyncio.to_thread(self._start_session, url)
        await self._following.until(lambda scene: scene.status is not None, silence_s=2 * ROUND_S, what="a round")
        if self._scene.status != "finished":
            raise await asyncio.to_thread(self._why, url, session)
        self.act("Comparing with central training and with one site alone")
        model = self._work / MODEL
        session = await asyncio.to_thread(_fetch, url, session, model)
        accuracies = await self._example.compare(model)
        if options.keep:
            await asyncio.to_thread((self._work / "start").write_text, start_script(self._components))
        else:
            await asyncio.to_thread(keep_model, model, options.folder / MODEL)
        digits = await asyncio.to_thread(_count, self._example.test)
        return self._outcome(url, session, accuracies, digits)

    def _start_session(self, url: str) -> Session:
        options = self._options
        with Network(url) as network:
            return network.sessions.start(
                package=self._package,
                seed=self._example.seed,
                rounds=options.rounds,
                name="demo",
                min_clients=options.clients,
                round_timeout_s=ROUND_S,
                retries=0,
                client_settings={"epochs": EPOCHS},
            )

    def _why(self, url: str, session: Session) -> RunnelError:
        """Return the error that tells why the session did not finish, with the last lines of a client that failed."""
        with Network(url) as network:
            ended = network.sessions.show(session, clients=True)
        how = f"The session {ended.status}"
        hint = "" if self._options.keep else "--keep keeps the logs."
        for made in ended.rounds:
            for part in made.clients:
                if part.error:
                    return DemoFailed(
                        f"{how}: {part.client} failed to {part.work} in round {made.round}: {part.error}",
                        hint=hint,
                        process=part.client,
                        tail=(part.log_tail or "").splitlines()[-TAIL_LINES:],
                        session=ended.session,
                    )
        return RunnelError(f"{how}: {ended.reason or 'no reason was given.'}", hint=hint, session=ended.session)

    def _outcome(self, url: str, session: Session, accuracies: Accuracies, test_digits: int) -> Outcome:
        options = self._options
        seconds = [item.seconds for item in session.rounds if item.seconds is not None]
        return Outcome(
            rounds=len(session.rounds),
            clients=options.clients,
            combiners=options.combiners,
            non_iid=options.non_iid,
            accuracy=accuracies.federated,
            accuracy_central=accuracies.central,
            accuracy_alone=accuracies.alone,
            accuracies=tuple(self._scene.course),
            test_digits=test_digits,
            model=options.folder / MODEL,
            model_id=session.model,
            package=session.package,
            session=session.session,
            url=url,
            seconds=0.0,  # known when the last process has ended
            seconds_per_round=sum(seconds) / max(1, len(seconds)),
            folder=options.folder if options.keep else None,
        )


def _addresses(endpoints: Endpoints) -> tuple[str, str]:
    if endpoints.rpc is None or endpoints.http is None:
        raise AssertionError("a reducer serves both")
    return endpoints.rpc, endpoints.http


def _fetch(url: str, session: Session, model: Path) -> Session:
    """Download the last model and return the session as it ended."""
    with Network(url) as network:
        ended = network.sessions.show(session)
        network.models.get(ended.model, model)
        return ended


def _count(test: Path) -> int:
    with np.load(test) as data:
        return len(data["y"])


async def _until(stop: asyncio.Event) -> None:
    await stop.wait()
    raise Interrupted


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """Return what came first: a process that ended explains why the network was not reached any more."""
    for kind in (Interrupted, DemoFailed):
        found = group.subgroup(kind)
        while found is not None:
            first = found.exceptions[0]
            if not isinstance(first, BaseExceptionGroup):
                return first
            found = first
    return first_error(group)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
