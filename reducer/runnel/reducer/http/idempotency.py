"""One logical call, one effect: a POST that is sent again with its Idempotency-Key gets the first answer again.

Only answers of success are kept: an error had no effect, so the repeated call is made again. Keys belong to the
token that used them. A second call that comes while the first is still at work waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.responses import Response
from pydantic import BaseModel

from runnel.common.errors import Conflict, InvalidInput
from runnel.reducer.http.access import CallerDep, Service
from runnel.reducer.service import Caller, ReducerService

MAX_KEY = 200
SECRETS_KEPT_S = 600.0
_MAX_SECRETS = 256

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description=f"Up to {MAX_KEY} visible ASCII characters, new for each logical call, the same when it is sent "
        "again: the effect happens once and the answer is the same, for a day.",
    ),
]


class Calls:
    """Calls under way, and for some minutes the answers that carry a secret, which are never stored."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}
        self._secrets: dict[tuple[str, str], tuple[float, bytes]] = {}

    @asynccontextmanager
    async def alone(self, call: tuple[str, str]) -> AsyncIterator[None]:
        """Let one call of this key at a time pass."""
        lock, users = self._locks.get(call, (asyncio.Lock(), 0))
        self._locks[call] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[call]
            if users == 1:
                del self._locks[call]
            else:
                self._locks[call] = (lock, users - 1)

    def keep_secret(self, call: tuple[str, str], body: bytes) -> None:
        """Keep an answer with a secret in memory for a while."""
        self._forget_old()
        while len(self._secrets) >= _MAX_SECRETS:
            del self._secrets[next(iter(self._secrets))]
        self._secrets[call] = (self._clock(), body)

    def secret(self, call: tuple[str, str]) -> bytes | None:
        """Return the kept answer, None when it is too old or from before a restart."""
        self._forget_old()
        entry = self._secrets.get(call)
        return entry[1] if entry else None

    def _forget_old(self) -> None:
        limit = self._clock() - SECRETS_KEPT_S
        self._secrets = {call: entry for call, entry in self._secrets.items() if entry[0] > limit}


class Once:
    """Does what a POST asks, or gives the answer again that its key got before."""

    def __init__(self, request: Request, service: ReducerService, caller: Caller, key: str | None) -> None:
        self._request, self._service, self._caller, self._key = request, service, caller, key
        self._calls: Calls = request.app.state.calls

    async def answer(
        self,
        act: Callable[[], Awaitable[BaseModel]],
        *,
        status: int,
        body: bytes = b"",
        secret: str | None = None,
    ) -> Response:
        """Return the JSON of what ``act`` gives, with ``status``.

        Args:
            act: does the work.
            status: of the first answer; a repeated one has the same.
            body: what identifies the request besides its path and query.
            secret: name of a field that must not be stored.

        Raises:
            Conflict: the key was used for another request, or its answer carried a secret that is not kept any more.
        """
        if self._key is None:
            return _json(_dump(await act()), status)
        call = (self._caller.token_id, self._key)
        fingerprint = self._fingerprint(body)
        async with self._calls.alone(call):
            known = await self._service.recall(self._caller, self._key, fingerprint)
            if known is not None:
                return self._again(known, call, secret)
            made = await act()
            answer = _dump(made)
            stored = answer
            if secret is not None:
                self._calls.keep_secret(call, answer)
                stored = _dump(made.model_copy(update={secret: None}))
            await self._service.remember(self._caller, self._key, fingerprint, status, stored)
            return _json(answer, status)

    def _again(self, known: tuple[int, bytes], call: tuple[str, str], secret: str | None) -> Response:
        status, body = known
        if secret is not None:
            kept = self._calls.secret(call)
            if kept is None:
                raise Conflict(
                    f"What Idempotency-Key {call[1]!r} asked for was made before, and its secret is not kept.",
                    hint="Revoke it and make another with a new key.",
                    key=call[1],
                )
            body = kept
        answer = _json(body, status)
        answer.headers["Idempotency-Replayed"] = "true"
        return answer

    def _fingerprint(self, body: bytes) -> str:
        request = self._request
        digest = hashlib.sha256()
        for part in (request.method, request.url.path, request.url.query):
            digest.update(part.encode() + b"\0")
        digest.update(body)
        return digest.hexdigest()


def once(request: Request, service: Service, caller: CallerDep, key: Key = None) -> Once:
    """Make the keeper of this request's promise."""
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        raise InvalidInput(
            f"Idempotency-Key: {key[:MAX_KEY]!r} came; it has to be 1 to {MAX_KEY} visible ASCII characters."
        )
    return Once(request, service, caller, key)


OnceDep = Annotated[Once, Depends(once)]


def _dump(document: BaseModel) -> bytes:
    return document.model_dump_json().encode()


def _json(body: bytes, status: int) -> Response:
    return Response(body, status_code=status, media_type="application/json")
