"""A PostgreSQL server of the tests' own: made in a temporary folder, on a free port of the loopback."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.lasting_port import lasting_port
from tests.needs import needs

USER = "runnel"
PASSWORD = "correct/horse@battery"  # with what has to be percent-encoded in a URL
_ENCODED = "correct%2Fhorse%40battery"

# Numbers begin with 1 again, and foreign keys ask for no order. Who still has a row locked must not be waited for.
_EMPTY = """DO $$
DECLARE name regclass;
BEGIN
    PERFORM set_config('session_replication_role', 'replica', true), set_config('lock_timeout', '30s', true);
    FOR name IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' LOOP
        IF name <> 'alembic_version'::regclass THEN EXECUTE 'DELETE FROM ' || name; END IF;
    END LOOP;
    PERFORM setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S';
END $$"""


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Run a server of its own; skips (or fails in CI) where its programs are not installed."""
    programs = binaries()
    needs(programs, "the programs of a PostgreSQL server")
    assert programs is not None
    made = Cluster(programs)
    try:
        made.start()
        yield made
    finally:
        made.remove()


def binaries() -> Path | None:
    """Return the folder of the newest server programs of this machine, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.append(Path(on_path))
    return found[-1].resolve().parent if found else None


class Cluster:
    """A server that can be stopped and started again on the same port; :meth:`remove` leaves nothing behind."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        # Not below pytest's folders: those are closed to the user that the server runs as.
        self._folder = Path(tempfile.mkdtemp(prefix="runnel-postgresql-"))
        self._as: list[str] = []
        self._idle: list[str] = []  # names of migrated databases without rows
        if os.geteuid() == 0:
            # The server refuses to run as root. Not by the `user` of subprocess: with it Python forks in its own way,
            # which the threads of gRPC in this process do not survive.
            self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
            shutil.chown(self._folder, "postgres", "postgres")
        self._folder.chmod(0o755)
        self.port = lasting_port()
        password = self._folder / "password"
        password.write_text(PASSWORD)
        data = str(self._folder / "data")
        # A locale that does not sort by bytes: what relies on the order of SQLite shows here.
        self._call("initdb", "-D", data, "-U", USER, "-A", "scram-sha-256", f"--pwfile={password}", "-N", "-E", "UTF8")
        settings = {
            "listen_addresses": "'127.0.0.1'",
            "port": str(self.port),
            "unix_socket_directories": f"'{self._folder}'",
            # A crash of the server is tested, one of the machine is not.
            "fsync": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
            "jit": "off",
            "timezone": "'Asia/Kathmandu'",  # times must not depend on it
            "max_connections": "60",
        }
        with (self._folder / "data" / "postgresql.conf").open("a") as file:
            file.writelines(f"{key} = {value}\n" for key, value in settings.items())

    def start(self) -> None:
        self._call("pg_ctl", "-D", str(self._folder / "data"), "-l", str(self._folder / "log"), "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``fast`` ends its connections, ``immediate`` is a crash."""
        self._call("pg_ctl", "-D", str(self._folder / "data"), "-m", mode, "-w", "stop")

    def remove(self) -> None:
        if (self._folder / "data" / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """Make an empty database and return its URL, as a person would write it."""
        name = f"test_{secrets.token_hex(6)}"
        self.query("postgres", f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    @contextlib.contextmanager
    def lent_database(self) -> Iterator[str]:
        """Give the URL of a migrated database without rows, which is emptied afterwards for the next one.

        To empty it takes a tenth of the time of making one.
        """
        url = self._idle.pop() if self._idle else self._migrated_database()
        yield url
        self.query(url.rpartition("/")[2], _EMPTY)
        self._idle.append(url)

    def _migrated_database(self) -> str:
        from sqlalchemy import create_engine

        from runnel.reducer.store.database_url import read_database_url
        from runnel.reducer.store.schema import migrate

        url = self.new_database()
        engine = create_engine(read_database_url(url))
        with engine.begin() as connection:
            migrate(connection)
        engine.dispose()
        return url

    def url(self, database: str, password: str = _ENCODED) -> str:
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def query(self, database: str, statement: str) -> list[tuple[object, ...]]:
        """Run one statement of the tests' own; needs the driver."""
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(statement.encode())
            return list(cursor.fetchall()) if cursor.description else []

    def _call(self, program: str, *arguments: str) -> None:
        with (self._folder / "output").open("ab") as output:
            ended = subprocess.run(
                [*self._as, str(self._programs / program), *arguments],
                cwd=self._folder,
                # What it starts keeps the standard streams: a pipe would never end.
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                check=False,
                timeout=120,
            )
        if ended.returncode:
            told = [
                path.read_text()[-3000:] for path in (self._folder / "output", self._folder / "log") if path.exists()
            ]
            raise AssertionError(f"{program} {arguments[-1]} ended with {ended.returncode}:\n" + "\n".join(told))
