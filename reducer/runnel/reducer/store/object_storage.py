"""Objects below a prefix of an S3-compatible store, with the errors that everybody here knows.

Needs the extra ``s3``; imported only where a bucket is wanted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from runnel.common.blobs import in_thread, storage_errors
from runnel.common.errors import BadSettings, CorruptData, NotFound, RunnelError, StorageFull, Unreachable
from runnel.reducer.store.bucket_url import BucketUrl

R = TypeVar("R")

# Requests are of this size, so that each fits its time and one that breaks costs little: a file that is longer goes up
# as an upload of several parts, and every file comes down in several ranges. At most 10,000 parts: 80 GiB.
PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 4
_REQUEST_S = 30.0
_CONNECT_S = 3.0
_LISTED_AT_ONCE = 1000
_SHA256 = "sha256"

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_FULL = frozenset({"XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "EntityTooLarge"})
_NO_BUCKET = "NoSuchBucket"
_ROLE = "/latest/api/token"  # without variables a role of the machine is asked for, which most machines have not


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object: its key below the prefix, its length, and the digest that it was stored with ("": none)."""

    key: str
    size_bytes: int
    sha256: str = ""


class ObjectStorage:
    """The objects below a prefix.

    Credentials come from the variables of AWS (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``,
    a web identity or a role of the machine). A request that fails for the moment is repeated for ``url.patience_s``.
    What is sent is signed with its SHA-256, so the store refuses what was damaged on the way up.

    All operations raise :class:`Unreachable` when the store does not answer, or refuses for a reason that somebody can
    mend while this process runs (a policy, a key that expired).
    """

    def __init__(self, url: BucketUrl) -> None:
        self.url = url
        self._store = _store(url)

    async def require_usable(self) -> None:
        """Write and read a small object.

        Raises:
            BadSettings: there is no such bucket, or the credentials do not allow it.
            Unreachable: it does not answer.
        """
        key = "runnel.txt"
        try:
            await obstore.put_async(self._store, key, b"The blobs of one Runnel network lie beside this.\n")
            await obstore.get_range_async(self._store, key, start=0, length=1)
            async for _ in obstore.list(self._store, "blobs", chunk_size=1):
                break
        except (BaseError, FileNotFoundError, OSError, ValueError) as error:
            raise self._unusable(error) from error.with_traceback(None)

    async def find(self, key: str) -> StoredObject | None:
        """Return the object, or None."""

        async def ask() -> StoredObject | None:
            try:
                answer = await obstore.get_async(self._store, key, options={"head": True})
            except FileNotFoundError as error:
                if _reason(error) == _NO_BUCKET:
                    raise
                return None
            digest = str(answer.attributes.get(_SHA256, ""))
            return StoredObject(key=key, size_bytes=answer.meta["size"], sha256=digest)

        return await self._asked(ask)

    async def put(self, key: str, file: Path, *, sha256: str) -> None:
        """Store ``file``, whose digest is ``sha256``; it appears when it is whole."""
        await self._asked(
            lambda: obstore.put_async(
                self._store,
                key,
                file,
                attributes={_SHA256: sha256},
                chunk_size=PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )
        )

    async def get(self, key: str, target: Path, *, sha256: str | None = None) -> None:
        """Bring an object to the new file ``target`` and verify it.

        Args:
            sha256: its digest; None: the one that it was stored with.

        Raises:
            NotFound: there is none.
            CorruptData: it has another digest. What came is removed.
            StorageFull: no room for it here. What came is removed.
        """
        found = await self.find(key)
        if found is None:
            raise self._missing(key)
        expected = sha256 if sha256 is not None else found.sha256
        digest = hashlib.sha256()
        try:
            with storage_errors(target, need_bytes=found.size_bytes), await in_thread(target.open, "xb") as file:
                for start in range(0, found.size_bytes, PART_BYTES):
                    part = await self._part(key, start, min(PART_BYTES, found.size_bytes - start))
                    await in_thread(file.write, part)
                    await in_thread(digest.update, part)
            if digest.hexdigest() != expected and expected:
                raise CorruptData(
                    f"The object {key} of {self.url} has the digest {digest.hexdigest()}; {expected} was stored.",
                    hint="It was changed or damaged in the store: put back what was there, from a version or a backup.",
                    key=key,
                )
        except BaseException:
            await in_thread(target.unlink, missing_ok=True)
            raise

    async def _part(self, key: str, start: int, length: int) -> memoryview:
        async def ask() -> memoryview:
            try:
                return memoryview(await obstore.get_range_async(self._store, key, start=start, length=length))
            except FileNotFoundError as error:
                raise self._missing(key) from error.with_traceback(None)

        part = await self._asked(ask)
        if len(part) != length:
            raise CorruptData(f"The object {key} of {self.url} changed while it was read.", key=key)
        return part

    async def delete(self, key: str) -> None:
        """Remove an object, if it is there."""

        async def ask() -> None:
            try:
                await obstore.delete_async(self._store, key)
            except FileNotFoundError as error:
                if _reason(error) == _NO_BUCKET:
                    raise

        await self._asked(ask)

    async def list(self, folder: str) -> AsyncIterator[StoredObject]:
        """Yield what is below ``folder``, without digests."""
        pages = aiter(obstore.list(self._store, folder, chunk_size=_LISTED_AT_ONCE))
        while (page := await self._asked(lambda: anext(pages, None))) is not None:
            for found in page:
                yield StoredObject(key=found["path"], size_bytes=found["size"])

    # ---- errors

    async def _asked(self, ask: Callable[[], Awaitable[R]]) -> R:
        try:
            return await ask()
        except RunnelError:
            raise
        except (BaseError, FileNotFoundError) as error:
            why = _reason(error)
            if why in _FULL:
                raise StorageFull(
                    f"There is no room in {self.url} ({why}).", hint="Make some, or raise the quota; then go on."
                ) from error.with_traceback(None)
            raise Unreachable(
                f"The blob store {self.url} does not do what it is asked: {why}.",
                hint="Nothing that was committed is lost; it is tried again.",
            ) from error.with_traceback(None)

    def _unusable(self, error: Exception) -> RunnelError:
        why, text = _reason(error), str(error)
        status = _STATUS.search(text)
        if why == _NO_BUCKET or (status and status[1] in {"301", "404"}):
            return BadSettings(
                f"The setting blobs names {self.url}, and there is no such bucket ({why}).",
                hint="Make it first, and check endpoint and region.",
                key="blobs",
            )
        if (status and status[1] in {"400", "401", "403"}) or _ROLE in text:
            return BadSettings(
                f"The credentials for {self.url} are missing, wrong or allow too little ({why}).",
                hint="Give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a role) that may get, put, delete and list"
                " objects there.",
                key="blobs",
            )
        return Unreachable(
            f"The blob store {self.url} does not answer: {why}.", hint="Is it running, and is the endpoint right?"
        )

    def _missing(self, key: str) -> NotFound:
        return NotFound(
            f"There is no object {key} in {self.url}.",
            hint="It was deleted there, or never stored: is this the right bucket and prefix?",
            key=key,
        )


def _store(url: BucketUrl) -> S3Store:
    wanted: dict[str, str] = {}
    if url.endpoint is not None:
        wanted["endpoint"] = url.endpoint
    if url.region is not None:
        wanted["region"] = url.region
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=_REQUEST_S),
        "connect_timeout": timedelta(seconds=min(_CONNECT_S, url.patience_s)),
    }
    if url.plaintext_host is not None:
        client["allow_http"] = True
    longest = min(1.0, url.patience_s / 3)
    try:
        return S3Store(
            url.bucket,
            prefix=url.prefix or None,
            virtual_hosted_style_request=url.bucket_in_host,
            client_options=client,  # type: ignore[arg-type]
            retry_config={
                "max_retries": 1000,  # the time decides
                "retry_timeout": timedelta(seconds=url.patience_s),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=longest),
                    "base": 2,
                },
            },
            **wanted,  # type: ignore[arg-type]
        )
    except Exception as error:
        raise BadSettings(f"The setting blobs can't be used: {_reason(error)}.", key="blobs") from error


def _reason(error: BaseException) -> str:
    """Return in short what the store or the library says: a code of S3, a status, or what was wrong with the way."""
    text = str(error)
    if code := _CODE.search(text):
        return code[1]
    line = text.splitlines()[0].strip() if text.strip() else type(error).__name__
    if status := _STATUS.search(line):
        return f"HTTP status {status[1]}"
    return line.rpartition(" - ")[2].strip().rstrip(".")[:200]
