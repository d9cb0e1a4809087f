"""What sites publish of their data: asked for where it is not known, kept until a site says otherwise.

A client tells with each attachment the digest of what it publishes; the whole is sent only if that is not known here.
So whatever is lost on the way is asked for again, and a network that comes back after a break says nothing twice.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Protocol

import structlog

from runnel.common.catalogue import read_catalogue
from runnel.common.errors import InvalidInput
from runnel.common.protocol import CatalogueNews, CatalogueWanted, Downward, Member
from runnel.reducer.domain.roster import Roster
from runnel.reducer.store import catalogues
from runnel.reducer.store.journal import Journal

_AT_ONCE = 8
"""How many clients are asked at a time: what they answer has to fit into what combiners keep on its way."""

_ANSWER_S = 15.0
_ATTEMPTS = 3

log = structlog.get_logger()


class Below(Protocol):
    """The nodes below."""

    roster: Roster

    def send(self, child: str, message: Downward) -> None:
        """Send to a directly attached node."""
        ...


class Catalogues:
    """See the module.

    Args:
        journal: the durable state.
        network: the nodes below.
        answer_s: seconds until a client that does not answer is asked again.
    """

    def __init__(self, journal: Journal, *, network: Below, answer_s: float = _ANSWER_S) -> None:
        self._journal = journal
        self._network = network
        self._answer_s = answer_s
        self._known: dict[str, str] = {}  # digest by client
        self._to_ask: asyncio.Queue[str] = asyncio.Queue()
        self._asked: dict[str, asyncio.Event] = {}

    async def open(self) -> None:
        """Take up what is known."""
        async with self._journal.database.read() as tx:
            self._known = await catalogues.digests(tx)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(_AT_ONCE):
                group.create_task(self._ask(), name=f"catalogue asks {number}")

    async def arrived(self, members: Iterable[Member]) -> None:
        """Clients attached: those that publish something new are asked for it, what others withdrew is removed."""
        withdrawn = []
        for member in members:
            if member.catalogue == self._known.get(member.name, ""):
                continue
            if member.catalogue:
                self._to_ask.put_nowait(member.name)
            else:
                withdrawn.append(member.name)
        await self._forget(withdrawn)

    async def heard(self, child: str, news: CatalogueNews) -> None:
        """A client below ``child`` says what it publishes; only what it has announced is taken."""
        client = news.client
        member = self._network.roster.find(client)
        digest = hashlib.sha256(news.document.encode()).hexdigest()
        if member is None or child not in self._network.roster.ways(client) or member.catalogue != digest:
            log.warning("a catalogue that was not announced", child=child, client=client)
            return
        if (answered := self._asked.get(client)) is not None:
            answered.set()
        if self._known.get(client) == digest:
            return
        try:
            told = await asyncio.to_thread(read_catalogue, news.document, source=client)
        except InvalidInput as error:
            log.warning("what a client publishes can't be read", client=client, error=error.message)
            await self._forget([client])
            return
        async with self._journal.transaction() as tx:
            await catalogues.put(tx.session, client, digest, told)
        self._known[client] = digest
        log.info("a client publishes datasets", client=client, datasets=len(told.datasets))

    async def _forget(self, clients: list[str]) -> None:
        known = [client for client in clients if client in self._known]
        if known:
            async with self._journal.transaction() as tx:
                await catalogues.forget(tx.session, known)
            for client in known:
                del self._known[client]

    def _is_missing(self, client: str) -> bool:
        member = self._network.roster.find(client)
        return member is not None and member.catalogue not in {"", self._known.get(client)}

    async def _ask(self) -> None:
        while True:
            client = await self._to_ask.get()
            for _ in range(_ATTEMPTS):
                if not self._is_missing(client):
                    break
                answered = self._asked[client] = asyncio.Event()
                try:
                    for child in self._network.roster.ways(client):
                        self._network.send(child, CatalogueWanted(client=client))
                    async with asyncio.timeout(self._answer_s):
                        await answered.wait()
                    break
                except TimeoutError:
                    log.info("a client has not said what it publishes", client=client)
                finally:
                    if self._asked.get(client) is answered:
                        del self._asked[client]
