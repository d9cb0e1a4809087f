"""Files named by digests of their bytes: models, packages and payloads on disk."""

from runnel.common.blobs.digests import BLOCK_BYTES, EMPTY, Source, digest_file, digest_payload, is_blob, is_sha256
from runnel.common.blobs.leftovers import KEPT_HEARTBEATS, Leftovers
from runnel.common.blobs.readers import Readers
from runnel.common.blobs.relay import KEPT_BACK_BYTES, Relay, RelayedBlob, begins_anew
from runnel.common.blobs.spares import LEAST_SPARE_BYTES, Spares
from runnel.common.blobs.spool import Spool, SpoolFile
from runnel.common.blobs.store import BlobStore
from runnel.common.blobs.threads import SMALL_BYTES, by_size, in_thread, to_its_end
from runnel.common.storage import require_room, storage_errors

__all__ = [
    "BLOCK_BYTES",
    "EMPTY",
    "KEPT_BACK_BYTES",
    "KEPT_HEARTBEATS",
    "LEAST_SPARE_BYTES",
    "SMALL_BYTES",
    "BlobStore",
    "Leftovers",
    "Readers",
    "Relay",
    "RelayedBlob",
    "Source",
    "Spares",
    "Spool",
    "SpoolFile",
    "begins_anew",
    "by_size",
    "digest_file",
    "digest_payload",
    "in_thread",
    "is_blob",
    "is_sha256",
    "require_room",
    "storage_errors",
    "to_its_end",
]
