"""Which database a URL names, and which of its parts may be shown."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from runnel.common.errors import BadSettings

DATABASE_FILE = "reducer.db"

_EXAMPLE = "postgresql://user@host:5432/runnel"


def read_database_url(text: str) -> URL:
    """Return the URL with the driver that is used here: aiosqlite for SQLite, psycopg for PostgreSQL.

    ``postgresql://``, ``postgres://`` and both with the name of another driver are understood, so that a URL that was
    written for another program does; its parameters are those of libpq (``?sslmode=verify-full``).

    Raises:
        BadSettings: it is no URL of such a database, or the driver is not installed. The message shows no password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        # What can't be read may have a password anywhere: nothing of it is shown.
        raise BadSettings(
            "The setting database is not the URL of a database.",
            hint=f"Give one such as {_EXAMPLE}; characters like @ and / in a password are percent-encoded.",
            key="database",
        ) from error.with_traceback(None)
    kind = url.get_backend_name()
    if kind == "sqlite":
        return url.set(drivername="sqlite+aiosqlite")
    if kind not in {"postgresql", "postgres"}:
        raise BadSettings(
            f"The setting database names a database of the kind {kind!r}; SQLite and PostgreSQL are supported.",
            hint=f"Give a URL such as {_EXAMPLE}, or none for SQLite in the state folder.",
            key="database",
        )
    if not url.database:
        raise BadSettings(
            "The setting database names no database of the PostgreSQL server.",
            hint=f"Its name comes after the host: {_EXAMPLE}.",
            key="database",
        )
    if importlib.util.find_spec("psycopg") is None:
        raise BadSettings(
            "The setting database names PostgreSQL, whose driver is not installed.",
            hint="Install it: pip install 'runnel[postgresql]'.",
            key="database",
        )
    return url.set(drivername="postgresql+psycopg")


def database_url(setting: str | None, state: Path) -> URL:
    """Return the database that the setting names; None: SQLite in the state folder.

    Raises:
        BadSettings: as :func:`read_database_url`.
    """
    if setting is None:
        return URL.create("sqlite+aiosqlite", database=str(state / DATABASE_FILE))
    return read_database_url(setting)


def sqlite_file(url: URL) -> Path | None:
    """Return the file of a SQLite database; None: it is in memory or another database."""
    if url.get_backend_name() != "sqlite" or url.database in {None, "", ":memory:"}:
        return None
    return Path(str(url.database))


def database_name(url: URL) -> str:
    """Return what people may see of a URL: neither user nor password nor parameters."""
    if url.get_backend_name() == "sqlite":
        return f"{url.database}"
    port = "" if url.port is None else f":{url.port}"
    return f"{url.database} at {url.host or url.query.get('host') or 'localhost'}{port}"
