"""A MariaDB server of the tests' own: made in a temporary folder, on a free port of the loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.needs import needs

USER = "reader"
PASSWORD = "correct/horse@battery"
DATABASE = "study"
_START_S = 60.0


@contextlib.contextmanager
def running_mariadb() -> Iterator[MariaDB]:
    """Run a server of its own; skips (or fails in CI) where its programs are not installed."""
    install, serve = (
        shutil.which("mariadb-install-db"),
        shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin"),
    )
    needs(install and serve, "the programs of a MariaDB server")
    assert install is not None
    assert serve is not None
    made = MariaDB(install, serve)
    try:
        made.start()
        yield made
    finally:
        made.remove()


class MariaDB:
    """A server with one database, whose :data:`USER` may read and write it; :meth:`remove` leaves nothing behind."""

    def __init__(self, install: str, serve: str) -> None:
        self._serve = serve
        # Not below pytest's folders: those are closed to the user that the server runs as.
        self._folder = Path(tempfile.mkdtemp(prefix="runnel-mariadb-"))
        self._as: list[str] = []
        if os.geteuid() == 0:
            self._as = ["setpriv", "--reuid=mysql", "--regid=mysql", "--clear-groups", "--"]
            shutil.chown(self._folder, "mysql", "mysql")
        self._folder.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._data = str(self._folder / "data")
        options = [
            "--no-defaults",
            f"--datadir={self._data}",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
        ]
        with (self._folder / "output").open("ab") as output:
            subprocess.run(
                [*self._as, install, *options, "--innodb-log-file-size=4M", "--innodb-buffer-pool-size=16M"],
                stdout=output,
                stderr=output,
                check=True,
                timeout=120,
            )

    def start(self) -> None:
        options = [
            "--no-defaults",
            f"--datadir={self._data}",
            f"--socket={self._folder}/socket",
            f"--pid-file={self._folder}/pid",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--innodb-log-file-size=4M",
            "--innodb-buffer-pool-size=16M",
            "--innodb-flush-log-at-trx-commit=0",
            "--default-time-zone=+05:45",  # times must not depend on it
            "--sql-mode=ANSI",  # and neither must what a statement means
        ]
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen([*self._as, self._serve, *options], stdout=output, stderr=output)
        until = time.monotonic() + _START_S
        while True:
            try:
                self.query(f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4", database=None)
                break
            except OSError:
                pass
            except Exception as error:
                if "2003" not in str(error) and "2013" not in str(error):
                    raise
            if time.monotonic() > until or self._process.poll() is not None:
                raise AssertionError((self._folder / "output").read_text()[-3000:])
            time.sleep(0.05)
        self.query(f"CREATE USER '{USER}'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'")
        self.query(f"GRANT ALL ON {DATABASE}.* TO '{USER}'@'127.0.0.1'")

    def query(self, statement: str, *, database: str | None = DATABASE) -> Sequence[Any]:
        """Run one statement of the tests' own as the server's owner; needs the driver."""
        import pymysql

        connection = pymysql.connect(
            host="127.0.0.1", port=self.port, user="root", database=database, autocommit=True, connect_timeout=5
        )
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def remove(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
        shutil.rmtree(self._folder)
