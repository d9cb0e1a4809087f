"""Access tokens, and who calls by what is presented."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest

from runnel.common.errors import Unauthenticated
from runnel.common.protocol import NodeKind
from runnel.reducer.access_tokens import AccessTokens, looks_like_one
from runnel.reducer.callers import Callers
from runnel.reducer.domain.values import Role
from runnel.reducer.http.fds.access import CallLog
from runnel.reducer.service import Caller
from runnel.reducer.store import access
from runnel.reducer.store.journal import Journal
from runnel.transport import NodeIdentity
from runnel.transport.credentials import CredentialIssuer
from tests.doubles.reducer_state import database_in

pytestmark = pytest.mark.unit

KEY = bytes(range(32))
CALLER = Caller(token_id="tok-1", role=Role.RESEARCHER, organisation="north")


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def journal(tmp_path: Path, each_database: None) -> AsyncIterator[Journal]:
    async with database_in(tmp_path) as database:
        async with database.write() as tx:
            await access.add_token(tx, "tok-1", "rnl_secret", "north", Role.RESEARCHER, "alice", None)
            await access.add_token(tx, "tok-2", "rnl_other", "north", Role.VIEWER, "", None)
        yield Journal(database)


async def test_an_access_token_stands_for_its_token_until_it_ends(journal: Journal, clock: Clock) -> None:
    callers = Callers(journal, AccessTokens(KEY, clock, ttl_s=60.0), insecure=False)
    assert await callers.authenticate("rnl_secret") == CALLER
    made = callers.access_token(CALLER)
    assert made.expires_in_s == 60.0
    assert jwt.decode(made.token, options={"verify_signature": False})["role"] == "researcher"
    assert await callers.authenticate(made.token) == CALLER
    clock.now += 60.0
    with pytest.raises(Unauthenticated, match="expired 0 s ago"):
        await callers.authenticate(made.token)


async def test_a_revoked_token_ends_what_stands_for_it(journal: Journal, clock: Clock) -> None:
    callers = Callers(journal, AccessTokens(KEY, clock), insecure=False)
    made = callers.access_token(CALLER)
    async with journal.database.write() as tx:
        await access.revoke_token(tx, "north", "tok-1")
    with pytest.raises(Unauthenticated, match="revoked"):
        await callers.authenticate(made.token)


async def test_a_client_id_is_the_tokens_id_or_name(journal: Journal) -> None:
    callers = Callers(journal, AccessTokens(KEY), insecure=False)
    for client_id in ("tok-1", "alice"):
        assert await callers.authenticate("rnl_secret", client_id=client_id) == CALLER
    for secret, client_id in [("rnl_secret", "tok-2"), ("rnl_secret", ""), ("rnl_other", ""), ("rnl_none", "alice")]:
        with pytest.raises(Unauthenticated):
            await callers.authenticate(secret, client_id=client_id)


def forged() -> list[str]:
    claims = {"aud": "runnel.people", "sub": "tok-1", "role": "operator", "org": "north", "exp": 4_000_000_000}
    nobodys = {name: value for name, value in claims.items() if name != "sub"}
    node = NodeIdentity(name="site", node_id="node-1", kind=NodeKind.CLIENT, organisation="north")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    return [
        jwt.encode(claims, "x" * 32, algorithm="HS256"),
        jwt.encode(nobodys, "x" * 32, algorithm="HS256"),
        AccessTokens(bytes(32)).issue(CALLER).token,
        CredentialIssuer(KEY).issue(node, 60.0),
        f"{unsigned}.{jwt.encode(claims, 'x' * 32).split('.')[1]}.",
        "..",
    ]


@pytest.mark.parametrize("token", forged(), ids=range(6))
def test_what_was_not_issued_here_is_refused(token: str) -> None:
    assert looks_like_one(token)
    with pytest.raises(Unauthenticated, match="not issued by this network"):
        AccessTokens(KEY).token_id(token)


async def test_calls_are_in_the_event_log(journal: Journal) -> None:
    callers = Callers(journal, AccessTokens(KEY), insecure=False)
    await callers.note_call(CALLER, method="GET", path="/tasks/tsk-1/results", status=200, calls=1)
    event = (await journal.events(None, 0, 10))[0]
    assert (event.kind, event.data["by"], event.data["path"]) == ("api.call", "tok-1", "/tasks/tsk-1/results")


def test_who_asks_again_and_again_is_recorded_once_a_minute(clock: Clock) -> None:
    calls = CallLog(clock)
    assert [calls.due(CALLER, "/tasks/tsk-1", 200) for _ in range(4)] == [1, 0, 0, 0]
    assert calls.due(CALLER, "/tasks/tsk-1", 404) == 1
    assert calls.due(CALLER, "/tasks", 200) == 1
    clock.now += 61.0
    assert [calls.due(CALLER, "/tasks/tsk-1", 200) for _ in range(2)] == [4, 0]
