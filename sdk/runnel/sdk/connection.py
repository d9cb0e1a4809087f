"""One connection to a network's HTTP interface: requests, retries, errors and pages."""

from __future__ import annotations

import ipaddress
import json
import ssl
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from runnel.common.errors import BadSettings, InvalidInput, RunnelError, Unreachable

PREFIX = "/api/v1"
PAGE = 200

Content = str | Callable[[], Iterator[bytes]] | None
"""A body, or what makes its blocks anew for each attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """How often a request is sent when the connection fails, and the pauses (seconds, doubling, jittered) between."""

    number: int = 4
    first_pause_s: float = 0.1
    max_pause_s: float = 2.0

    def retrying(self) -> Retrying:
        """Return the loop over the attempts; it raises the last failure."""
        return Retrying(
            retry=retry_if_exception_type((httpx.TransportError, Busy)),
            stop=stop_after_attempt(self.number),
            wait=wait_random_exponential(multiplier=self.first_pause_s, max=self.max_pause_s),
            reraise=True,
        )


class Busy(Exception):
    """A gateway, or a server that is starting or stopping, answered that it can't now; another attempt may help."""

    def __init__(self, error: RunnelError) -> None:
        super().__init__(str(error))
        self.error = error


class Connection:
    """Speaks HTTP with the network at ``url``, for one thread at a time.

    All methods raise the :class:`runnel.common.errors.RunnelError` that the network raised, or Unreachable when it
    does not answer.
    """

    def __init__(
        self, url: str, *, token: str | None, ca_file: Path | None, timeout_s: float, attempts: Attempts
    ) -> None:
        parsed = _checked_url(url)
        self.url = url.strip().rstrip("/")
        self.attempts = attempts
        headers = {"User-Agent": f"runnel/{version('runnel')}", "Accept": "application/json"}
        if token and (shown := _checked_token(token)):
            headers["Authorization"] = f"Bearer {shown}"
        self._client = httpx.Client(
            base_url=self.url + PREFIX,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            verify=_authorities(ca_file) if parsed.scheme == "https" else False,
            # A proxy of the environment can't reach this machine's loopback.
            trust_env=not _is_loopback(parsed.host),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Return the document at ``path``; query values that are None are left out."""
        return self.call("GET", path, query=query)

    def delete(self, path: str) -> dict[str, Any]:
        """Delete what is at ``path`` and return the answer's document."""
        return self.call("DELETE", path)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Post JSON under one idempotency key, however often it has to be sent."""
        try:
            content = None if body is None else json.dumps(body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"What was given can't be written as JSON: {error}.") from error
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        if content is not None:
            headers["Content-Type"] = "application/json"
        return self.call("POST", path, headers=headers, content=content)

    def pages(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield the items of all pages."""
        cursor: str | None = None
        while True:
            page = self.get(path, **query, cursor=cursor, limit=PAGE)
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: Content = None,
    ) -> dict[str, Any]:
        """Send a request, again when the connection fails, and return the document of its answer."""
        with self.unreachable():
            for attempt in self.attempts.retrying():
                with attempt:
                    response = self._client.request(
                        method,
                        path,
                        params=_given(query),
                        headers=headers,
                        content=content() if callable(content) else content,
                    )
                    return self._document(response)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def stream(
        self, path: str, *, query: Mapping[str, Any] | None = None, headers: Mapping[str, str], silence_s: float
    ) -> Iterator[httpx.Response]:
        """Open the answer at ``path`` without reading its body, once; raises httpx.TransportError and :class:`Busy`.

        ``silence_s``: how long the server may be silent.
        """
        timeout = httpx.Timeout(silence_s, connect=10.0)
        with self._client.stream("GET", path, params=_given(query), headers=headers, timeout=timeout) as response:
            if not response.is_success:
                response.read()
                self._raise(response)
            yield response

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Turn what is left of a failed connection into the error that says so."""
        try:
            yield
        except Busy as busy:
            raise busy.error from busy
        except httpx.TransportError as error:
            raise Unreachable(
                f"The network at {self.url} does not answer ({_reason(error)}).",
                hint=_hint(error),
                url=self.url,
            ) from error
        except httpx.HTTPError as error:
            raise Unreachable(f"The network at {self.url} answered what is no HTTP: {error}.", url=self.url) from error

    def _document(self, response: httpx.Response) -> dict[str, Any]:
        if not response.is_success:
            self._raise(response)
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise self._stranger(response)
        return document

    def _raise(self, response: httpx.Response) -> None:
        try:
            document = response.json()
        except ValueError:
            document = None
        if isinstance(document, dict) and "code" in document:
            error = RunnelError.from_wire({**document, "message": document.get("detail", "")})
        else:
            error = self._stranger(response)
        if response.status_code in {502, 503, 504}:
            raise Busy(error)
        raise error

    def _stranger(self, response: httpx.Response) -> RunnelError:
        return Unreachable(
            f"{self.url} answered {response.status_code} {response.reason_phrase} "
            f"({response.headers.get('content-type', 'no content type')}), which is not a Runnel network's answer.",
            hint="Is the address that of a reducer's HTTP interface? Set it by --url or RUNNEL_URL.",
            url=self.url,
        )


def _given(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _reason(error: httpx.TransportError) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) < 200 else text[:200] + "…"


def _hint(error: httpx.TransportError) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "Its certificate is not of an authority that is trusted here: give that by --ca-file or RUNNEL_CA_FILE."
    if "WRONG_VERSION_NUMBER" in text:
        return "It does not speak TLS: write http:// instead of https://."
    return "Is its reducer running? Give another address by --url or RUNNEL_URL (in Python: Network(url=…))."


def _checked_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise BadSettings(
            f"The address of the network has to be http://HOST:PORT or https://HOST:PORT; {url!r} came.",
            hint="Give it by --url or RUNNEL_URL.",
        )
    return parsed


def _checked_token(token: str) -> str:
    text = token.strip()
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise BadSettings(
            "The token has characters that no token has.", hint="Give it by --token or RUNNEL_TOKEN, without quotes."
        )
    return text


def _authorities(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise BadSettings(
            f"The certificate authority {ca_file} can't be read: {error.strerror or error}.",
            hint="Give a PEM file by --ca-file.",
        ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
