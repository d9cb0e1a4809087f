"""SPARQL endpoints: one SELECT, which is sent to the address of the site's file and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import httpx
from pyparsing.exceptions import ParseBaseException
from rdflib.plugins.sparql import parser
from rdflib.plugins.sparql.parserutils import CompValue
from rdflib.query import Result, ResultException

from runnel.client.data.databases import DatabaseConfig
from runnel.client.data.tables import Rows
from runnel.common.errors import BadQuery, QueryFailed, TooLarge

if TYPE_CHECKING:
    from runnel.client.data.interruption import Interruption

MAX_QUERY = 20_000
"""Characters of a query."""

_RESULTS = ("application/sparql-results+json", "application/json")
_BATCH_ROWS = 2048
_FORBIDDEN: Mapping[str, str] = {
    "ServiceGraphPattern": "SERVICE, which asks other endpoints",
    "DatasetClause": "FROM, which names what is read",
}


def check_query(text: str) -> None:
    """Require one SPARQL SELECT that asks nobody but the endpoint.

    Raises:
        BadQuery: it is another query, or none.
    """
    if len(text) > MAX_QUERY:
        raise BadQuery(f"A query has at most {MAX_QUERY:,} characters; {len(text):,} came.")
    try:
        _, query = parser.parseQuery(text)
    except ParseBaseException as error:
        raise BadQuery(f"The SPARQL query can't be read: {str(error)[:200]}.") from error
    except RecursionError:
        raise BadQuery("The SPARQL query is nested too deeply.") from None
    if query.name != "SelectQuery":
        raise BadQuery(f"A selection in SPARQL is a SELECT; {query.name.removesuffix('Query').upper()} came.")
    for part in _parts(query):
        if part.name in _FORBIDDEN:
            raise BadQuery(f"A selection may not have {_FORBIDDEN[part.name]}.")


def _parts(tree: Any) -> Iterator[CompValue]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, CompValue):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, (list, tuple)) or hasattr(node, "as_list"):
            waiting.extend(node)


class Endpoint:
    """A SPARQL endpoint.

    Args:
        database: with its address and, if it wants one, a password or a token.
        most_bytes: of an answer, which is held in memory.
        time_s: for the whole of it.
    """

    def __init__(self, database: DatabaseConfig, *, most_bytes: int = 256 << 20, time_s: float = 600.0) -> None:
        assert database.uri is not None
        self._name = database.name
        self._url = httpx.URL(database.uri)
        self._most_bytes = most_bytes
        self._time_s = time_s
        self._headers = {"Accept": ", ".join(_RESULTS)}
        self._auth: httpx.Auth | None = None
        if database.token is not None:
            self._headers["Authorization"] = f"Bearer {database.token}"
        elif database.password is not None:
            self._auth = httpx.BasicAuth(self._url.username, database.password)
        # What is left in the address would be sent as credentials too.
        self._url = self._url.copy_with(username="", password="")

    @contextlib.contextmanager
    def answer(self, query: str, interruption: Interruption) -> Iterator[Rows]:
        """Ask a checked query; values are written as their texts, URIs in full, what is unbound as nothing.

        Raises:
            BadQuery: it is no SELECT, or asks others.
            QueryFailed: the endpoint does not answer, or not with results.
            TooLarge: the answer has more bytes than may be.
            Cancelled, DeadlineExceeded: it was interrupted.
        """
        check_query(query)
        try:
            with asyncio.Runner() as runner:
                loop = runner.get_loop()
                asking = loop.create_task(self._ask(query))
                # A thread that waits at a socket can't be woken; a loop can.
                with interruption.ended_by(lambda: loop.call_soon_threadsafe(asking.cancel)):
                    result = runner.run(_awaited(asking))
        except asyncio.CancelledError:
            interruption.check()
            raise
        yield Rows(fields=tuple(str(each) for each in result.vars or ()), batches=_batches(result))

    async def _ask(self, query: str) -> Result:
        # Neither proxies nor credentials of this process's environment: the site's file says what is asked, and how.
        try:
            async with (
                httpx.AsyncClient(timeout=self._time_s, follow_redirects=False, trust_env=False) as client,
                client.stream(
                    "POST", self._url, data={"query": query}, headers=self._headers, auth=self._auth
                ) as response,
            ):
                return _parsed(await self._body(response))
        except (httpx.HTTPError, httpx.StreamError, ResultException, ValueError, TypeError, KeyError) as error:
            raise QueryFailed(
                f"The endpoint of the database {self._name!r} can't be read: {type(error).__name__}.",
                database=self._name,
            ) from error

    async def _body(self, response: httpx.Response) -> bytes:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code != httpx.codes.OK or kind not in _RESULTS:
            raise QueryFailed(
                f"The endpoint of the database {self._name!r} answered {response.status_code} with {kind[:80]!r};"
                " SPARQL results as JSON were expected.",
                database=self._name,
                status=response.status_code,
            )
        data = bytearray()
        async for part in response.aiter_bytes():
            data += part
            if len(data) > self._most_bytes:
                raise TooLarge(
                    f"The answer of the database {self._name!r} has more than {self._most_bytes:,} bytes.",
                    hint="Select fewer rows, by a FILTER or a LIMIT.",
                    limit_bytes=self._most_bytes,
                )
        return bytes(data)


async def _awaited(task: asyncio.Task[Result]) -> Result:
    return await task


def _parsed(data: bytes) -> Result:
    result = Result.parse(io.BytesIO(data), format="json")
    if result.type != "SELECT":
        raise ValueError(f"{result.type} came")
    return result


def _batches(result: Result) -> Iterator[Sequence[Sequence[object]]]:
    variables = list(result.vars or ())
    batch: list[Sequence[object]] = []
    for binding in result.bindings:
        batch.append([None if (term := binding.get(each)) is None else str(term) for each in variables])
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
