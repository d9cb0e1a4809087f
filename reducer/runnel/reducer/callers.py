"""Who asks: tokens of the network, access tokens that stand for them, and the record of what was called."""

from __future__ import annotations

from datetime import UTC, datetime

from runnel.common.errors import Unauthenticated
from runnel.reducer.access_tokens import AccessTokens, looks_like_one
from runnel.reducer.domain.values import DEFAULT_ORGANISATION, Role
from runnel.reducer.service import AccessToken, Caller
from runnel.reducer.store import access
from runnel.reducer.store.journal import Journal
from runnel.reducer.store.tables import TokenRow


class Callers:
    """Tells who calls by what is presented.

    Args:
        journal: where tokens are, and where calls are recorded.
        tokens: issues access tokens.
        insecure: anybody is operator.
    """

    def __init__(self, journal: Journal, tokens: AccessTokens, *, insecure: bool) -> None:
        self._journal = journal
        self._tokens = tokens
        self._insecure = insecure

    async def authenticate(self, bearer: str | None, *, client_id: str | None = None) -> Caller:
        """Return who presents ``bearer``; ``client_id``: id or name of the token that it has to be."""
        if self._insecure:
            return Caller(token_id="", role=Role.OPERATOR, organisation=DEFAULT_ORGANISATION)
        if not bearer:
            raise Unauthenticated(
                "The request carries no token.",
                hint="Give one by --token or RUNNEL_TOKEN (HTTP: Authorization: Bearer …).",
            )
        if looks_like_one(bearer):
            token_id = self._tokens.token_id(bearer)
            async with self._journal.database.read() as tx:
                token = await tx.get(TokenRow, token_id)
        else:
            async with self._journal.database.read() as tx:
                token = await access.find_token(tx, bearer)
        now = datetime.now(UTC)
        if token is None or token.revoked_at is not None or (token.expires_at is not None and token.expires_at < now):
            state = access.why_not(token, now)
            raise Unauthenticated(f"The token is {state}.", hint="Ask the operator for one (`runnel token create`).")
        if client_id is not None and client_id not in ({token.id, token.name} - {""}):
            raise Unauthenticated(
                f"The token is not that of {client_id[:100]!r}.",
                hint="The user, or client id, is the token's id or its name; `runnel token list` shows both.",
            )
        return Caller(token_id=token.id, role=Role(token.role), organisation=token.organisation_id)

    def access_token(self, caller: Caller) -> AccessToken:
        """Return an access token that stands for the caller's token."""
        return self._tokens.issue(caller)

    async def note_call(self, caller: Caller, *, method: str, path: str, status: int, calls: int) -> None:
        """Record in the event log what was called, and how it was answered."""
        async with self._journal.transaction() as tx:
            await tx.record(
                "api.call",
                caller.organisation,
                method=method,
                path=path,
                status=status,
                calls=calls,
                by=caller.token_id,
            )
