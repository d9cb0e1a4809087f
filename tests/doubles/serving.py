"""The HTTP interface over an in-memory reducer, really served on the loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from runnel.reducer.http import HttpServer, create_app
from runnel.transport.tls import ServerTls
from tests.doubles.reducer_service import OPERATOR_TOKEN, InMemoryReducer


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A reducer that is served, and somebody who asks."""

    reducer: InMemoryReducer
    server: HttpServer
    http: httpx.AsyncClient

    @property
    def url(self) -> str:
        return self.server.url


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    insecure: bool = True,
    token: str | None = None,
    tls: ServerTls | None = None,
    reducer: InMemoryReducer | None = None,
    listen: str = "127.0.0.1:0",
    stop_s: float = 2,
) -> AsyncIterator[Served]:
    reducer = reducer or InMemoryReducer(folder, insecure=insecure)
    token = OPERATOR_TOKEN if token is None else token
    async with HttpServer(
        create_app(reducer, insecure=insecure, registries=["registry.example.org", "registry.example.org:5000"]),
        listen,
        tls,
        stop_s=stop_s,
    ) as server:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(
            base_url=f"{server.url}/api/v1", headers=headers, verify=False, trust_env=False, timeout=20
        ) as http:
            yield Served(reducer=reducer, server=server, http=http)
