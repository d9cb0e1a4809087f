"""The interface of GA4GH's Task Execution Service, with what Federated Data Sharing adds to it."""

from __future__ import annotations

from fastapi import FastAPI

from runnel.reducer.http.fds import datasets, results, selections, tasks, tokens
from runnel.reducer.http.fds.access import CallLog

PREFIXES = ("", "/v1", tasks.STANDARD)
"""Below which the routes of the standard are: as Federated Data Sharing has them, as older clients do, and its own."""


def mount_sharing(app: FastAPI) -> None:
    """Have ``app`` serve the interface, which is beside its own, not below it."""
    app.state.fds_calls = CallLog()
    app.include_router(tasks.sharing)
    for prefix in PREFIXES:
        app.include_router(tasks.standard, prefix=prefix)
    app.include_router(results.router)
    app.include_router(datasets.router)
    app.include_router(selections.router)
    app.include_router(tokens.router)
    app.include_router(tokens.health)
