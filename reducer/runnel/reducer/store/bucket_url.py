"""Which bucket a URL names, and how it is spoken to."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from runnel.common.errors import BadSettings

PLACE_FILE = "blobs.place"
"""In a state folder whose blobs are in a bucket: which one, for people."""

_EXAMPLE = "s3://bucket/prefix?endpoint=https://s3.example.org"
_PARAMETERS = ("endpoint", "region", "style", "patience_s")
_STYLES = ("path", "host")


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketUrl:
    """A place in an S3-compatible store.

    Attributes:
        bucket: its name.
        prefix: what all keys begin with, without a slash at either end; "" is the whole bucket.
        endpoint: of the store; None: that of Amazon, or of the variable ``AWS_ENDPOINT_URL``.
        region: None: of the variable ``AWS_REGION``, else us-east-1.
        bucket_in_host: whether the bucket is part of the host's name instead of the path.
        patience_s: an operation waits so long for a store that does not answer.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    bucket_in_host: bool = False
    patience_s: float = 10.0

    def __str__(self) -> str:
        """What people may see; there are no secrets in it."""
        place = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        return place if self.endpoint is None else f"{place} at {self.endpoint}"

    @property
    def plaintext_host(self) -> str | None:
        """The host of an endpoint that is spoken to without TLS; None: TLS is used."""
        if self.endpoint is None or not self.endpoint.startswith("http://"):
            return None
        return urlsplit(self.endpoint).hostname


def read_bucket_url(text: str) -> BucketUrl:
    """Read ``s3://bucket/prefix?endpoint=…&region=…&style=path|host&patience_s=10``.

    >>> print(read_bucket_url("s3://models/site-a?endpoint=http://127.0.0.1:9000"))
    s3://models/site-a at http://127.0.0.1:9000

    Raises:
        BadSettings: it is no such URL, or the library is not installed. The message shows nothing that may be secret.
    """
    try:
        parts = urlsplit(text)
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        credentials = parts.username is not None or parts.password is not None
    except ValueError as error:
        raise _refused("is not a URL") from error.with_traceback(None)
    if credentials:
        raise BadSettings(
            "The setting blobs has a user or password in it, where it would be seen.",
            hint="Give the credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as a role of the machine.",
            key="blobs",
        )
    if parts.scheme != "s3" or not parts.netloc or parts.fragment:
        raise _refused("is not the URL of a bucket")
    unknown = sorted(parameters.keys() - set(_PARAMETERS))
    if unknown:
        raise _refused(f"has parameters that are not known: {', '.join(unknown)}")
    if importlib.util.find_spec("obstore") is None:
        raise BadSettings(
            "The setting blobs names an S3 store, whose library is not installed.",
            hint="Install it: pip install 'runnel[s3]'.",
            key="blobs",
        )
    return BucketUrl(
        bucket=parts.netloc,
        prefix=_prefix(parts),
        endpoint=_endpoint(parameters.get("endpoint")),
        region=parameters.get("region") or None,
        bucket_in_host=_style(parameters.get("style", "path")) == "host",
        patience_s=_seconds(parameters.get("patience_s", "10")),
    )


def bucket_of(state: Path) -> str | None:
    """Return the bucket that a state folder's blobs are in, for people; None: they are in the folder."""
    try:
        return (state / PLACE_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _prefix(parts: SplitResult) -> str:
    prefix = unquote(parts.path).strip("/")
    if any(part in {"", ".", ".."} for part in prefix.split("/")) and prefix:
        raise _refused("has a prefix with an empty part or dots")
    return prefix


def _endpoint(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - is read to be checked
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/") or "@" in parts.netloc:
        raise _refused("has an endpoint that is not of the form http://host:port or https://host")
    return f"{parts.scheme}://{parts.netloc}"


def _style(text: str) -> str:
    if text not in _STYLES:
        raise _refused(f"has a style that is not one of {' and '.join(_STYLES)}")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise _refused("has a patience_s that is not a number of seconds above 0 and below 3600")
    return seconds


def _refused(what: str) -> BadSettings:
    return BadSettings(f"The setting blobs {what}.", hint=f"Give one such as {_EXAMPLE}.", key="blobs")
