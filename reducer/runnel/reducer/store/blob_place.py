"""Where a reducer's blobs are: in its state folder, or in a bucket by URL."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from runnel.common.blobs import BlobStore, Spares, in_thread
from runnel.common.disk import write_bytes
from runnel.common.errors import BadSettings
from runnel.reducer.store.blobs import Blobs, FolderBlobs
from runnel.reducer.store.bucket_url import PLACE_FILE, BucketUrl, bucket_of, read_bucket_url
from runnel.transport.addresses import is_loopback

BLOBS_FOLDER = "blobs"
CACHE_FOLDER = "blob-cache"


@contextlib.asynccontextmanager
async def opened_blobs(
    setting: str | None, state: Path, *, cache_bytes: int, allow_plaintext: bool, spares: Spares | None = None
) -> AsyncIterator[Blobs]:
    """Open what the setting ``blobs`` names; None: the state folder.

    A state folder whose blobs are in a bucket has a file that says so. The first time, what is in the folder is copied
    to the bucket. In the state folder, payloads that are not wanted any more become ``spares``.

    Raises:
        BadSettings: the URL makes no sense, the bucket is not there, the credentials are wrong, or the state's blobs
            are in a bucket and none or another one is given.
        Unreachable: the store does not answer.
    """
    marker, earlier = state / PLACE_FILE, bucket_of(state)
    if setting is None:
        if earlier is not None:
            raise BadSettings(
                f"The models of the state {state} are in {earlier}, and the setting blobs is not given.",
                hint=f"Give its URL. If they have been copied to {state / BLOBS_FOLDER}, remove {marker}.",
                key="blobs",
            )
        async with FolderBlobs(await in_thread(BlobStore, state / BLOBS_FOLDER), spares) as blobs:
            yield blobs
        return
    url = read_bucket_url(setting)
    if url.plaintext_host is not None and not is_loopback(url.plaintext_host) and not allow_plaintext:
        raise BadSettings(
            f"The setting blobs names {url}, which is spoken to without TLS.",
            hint="Give an endpoint with https, or --allow-plaintext where the network is protected otherwise.",
            key="blobs",
        )
    if earlier not in {None, str(url)}:
        raise BadSettings(
            f"The models of the state {state} are in {earlier}, and the setting blobs names {url}.",
            hint=f"Copy all objects to there, unless they are there under another name, and then remove {marker}.",
            key="blobs",
        )
    first_from = None
    if earlier is None and (state / BLOBS_FOLDER).is_dir():
        first_from = await in_thread(BlobStore, state / BLOBS_FOLDER)
    files = await in_thread(BlobStore, state / CACHE_FOLDER, durable=False)
    async with await in_thread(_shared, url, files, cache_bytes, first_from) as shared:
        await in_thread(write_bytes, marker, f"{url}\n".encode())
        yield shared


def _shared(url: BucketUrl, files: BlobStore, cache_bytes: int, first_from: BlobStore | None) -> Blobs:
    # The library is an extra, and not small: it is imported where it is wanted, and in a thread.
    from runnel.reducer.store.object_storage import ObjectStorage
    from runnel.reducer.store.shared_blobs import SharedBlobs

    return SharedBlobs(ObjectStorage(url), files, cache_bytes=cache_bytes, first_from=first_from)
