"""An S3-compatible store for tests: moto's server in a thread of this process, on the loopback."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import obstore
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from obstore.store import S3Store
from werkzeug.serving import BaseWSGIServer, make_server

KEY, SECRET = "AKIARUNNELTESTKEY", "correct-horse-battery-staple"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}


class BucketServer:
    """A server that can be away for a while: what it holds is kept, as on a disk."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._connections: set[socket.socket] = set()
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        connections, requests = self._connections, self.requests

        class Handler(MotoRequestHandler):
            def setup(self) -> None:
                connections.add(self.request)
                super().setup()

            def finish(self) -> None:
                with contextlib.suppress(OSError):  # it was cut
                    super().finish()
                connections.discard(self.request)

            def log_request(self, *args: Any) -> None:
                requests.append(f"{self.command} {self.path}")

            def log(self, *args: Any) -> None:
                """Say nothing of connections that were cut."""

        self._server = make_server("127.0.0.1", self._port, self._app, threaded=True, request_handler=Handler)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Be away: nobody listens, and all connections are cut."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        self._server = self._thread = None
        server.shutdown()
        thread.join()
        server.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # ---- what is in it

    def new_bucket(self, **parameters: object) -> str:
        """Make a bucket and return the URL of a prefix in it, for the setting ``blobs``."""
        name = f"bucket-{secrets.token_hex(6)}"
        httpx.put(f"{self.endpoint}/{name}").raise_for_status()
        more = "".join(f"&{key}={value}" for key, value in parameters.items())
        return f"s3://{name}/some/prefix?endpoint={self.endpoint}{more}"

    def keys(self, url: str) -> set[str]:
        """Return the keys below the prefix."""
        answer = httpx.get(f"{self.endpoint}/{_bucket(url)}?list-type=2&prefix=some/prefix/")
        answer.raise_for_status()
        return set(re.findall(r"<Key>some/prefix/([^<]+)</Key>", answer.text))

    def put(self, url: str, key: str, data: bytes) -> None:
        """Replace an object as one may who has the credentials."""
        options: Any = {"endpoint": self.endpoint, "client_options": {"allow_http": True}}
        obstore.put(S3Store(_bucket(url), **options), f"some/prefix/{key}", data)

    @contextlib.contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """Refuse everybody, as nobody is known to it."""
        self._free_requests("0")
        try:
            yield
        finally:
            self._free_requests("inf")

    def _free_requests(self, number: str) -> None:
        httpx.post(f"{self.endpoint}/moto-api/reset-auth", content=number).raise_for_status()


def _bucket(url: str) -> str:
    return url.removeprefix("s3://").partition("/")[0]


@contextlib.contextmanager
def running_bucket_server() -> Iterator[BucketServer]:
    server = BucketServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()
