"""Compressing updates before they are pushed, and keeping what that left out for the session's next one.

What an update leaves is part of its report until the report's fate is known:

* **Counted**: the session's next update carries it, in place of what this one carried.
* **Not counted** (late, discarded, called off, refused, or failed): nothing of this update arrived, so it is forgotten
  with all that it left, as an update without compression is; what it carried is free again for the next one.

So what was counted plus what is still kept is the sum of what was to be told, whichever updates counted. That holds
through a kill at any moment: what is left lies beside its report before the report exists, what a held report carries
is named in it, and each step after that may be done twice.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path

import structlog

from runnel.client.outbox import HeldReport, Outbox, Update
from runnel.common.blobs import storage_errors
from runnel.common.compression import Compression, encode_update, parse_compression, residual_schema
from runnel.common.errors import BadModel
from runnel.common.protocol import AssignmentKey
from runnel.common.tensors import open_npz

log = structlog.get_logger()

SESSIONS_KEPT = 8
"""How many sessions' leftovers are kept: nobody tells a client that a session is over."""


class Compressor:
    """The leftovers of all sessions, one folder each; a file in it is what one counted update left. All methods block.

    Args:
        root: made if it does not exist.
        outbox: of the same client: what its reports carry is not carried a second time.
    """

    def __init__(self, root: Path, outbox: Outbox) -> None:
        self._root = root
        self._outbox = outbox
        self._under_way: dict[AssignmentKey, list[Path]] = {}  # carried by what is not in the outbox yet
        self._lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)

    def compress(self, key: AssignmentKey, update: Path, *, how: str, base: Path, workdir: Path) -> Update:
        """Return the update as it is to be pushed: ``update`` itself, or a file in ``workdir`` and what that leaves.

        However this ends, nobody else carries what it carries until :meth:`kept` is called.

        Args:
            key: of the work that made it.
            update: as the entry point left it, checked.
            how: of the assignment.
            base: the global model.
            workdir: for the new files.

        Raises:
            InvalidInput: there is no such compression.
            BadModel: the update can't be compressed so.
            StorageFull: no room.
        """
        compression = parse_compression(how)
        if compression.is_none:
            return Update(file=update)
        encoded, left = workdir / "update.compressed", workdir / "update.left"
        carried = self._take(key, base, compression)
        with storage_errors(workdir):
            wrote = encode_update(update, encoded, compression=compression, base=base, carried=carried, left=left)
        log.info(
            "update compressed",
            key=str(key),
            how=str(compression),
            from_bytes=update.stat().st_size,
            to_bytes=encoded.stat().st_size,
        )
        update.unlink()
        return Update(file=encoded, left=left if wrote else None, carried=tuple(path.name for path in carried))

    def kept(self, key: AssignmentKey) -> None:
        """Hear that an update is in the outbox, or came to nothing: the outbox knows now what its reports carry."""
        if key in self._under_way:
            with self._lock:
                self._under_way.pop(key, None)

    def settled(self, key: AssignmentKey, *, counted: bool) -> None:
        """Drop a report from the outbox; if it was ``counted``, what it left takes the place of what it carried.

        Raises:
            OSError: the report can't be removed; it is offered again, and dropped then.
        """
        held = self._outbox.get(key) if counted and not self._outbox.is_light(key) else None
        if held is not None and (held.left is not None or held.carried):
            try:
                self._advance(held)
            except OSError as error:  # the update counts all the same; only its rounding is not made good
                log.error("what an update left is lost", key=str(key), error=str(error))
        self._outbox.drop(key)

    def _advance(self, held: HeldReport) -> None:
        folder, own = self._folder(held.key), _name(str(held.key))
        # Work that a reducer restored from a backup asks for again may carry what it left the first time.
        replaced = set() if held.left is None else {own}
        with self._lock:
            folder.mkdir(exist_ok=True)
            if held.left is not None and held.left.exists():  # if not, this was interrupted after it before
                held.left.replace(folder / own)
            for name in set(held.carried) - replaced:
                (folder / name).unlink(missing_ok=True)
            self._trim()

    def _take(self, key: AssignmentKey, base: Path, compression: Compression) -> list[Path]:
        """Return what the next update of a session is to carry, and let nobody else take it."""
        with open_npz(base, source="the global model") as model:
            schema = residual_schema(model.schema, compression)
        if schema is None:
            return []
        folder = self._folder(key)
        with self._lock:
            carried = {name for held in self._outbox.reports(key.session_id) for name in held.carried}
            free = [path for path in sorted(folder.glob("*")) if path.name not in carried]
            taken = {path for paths in self._under_way.values() for path in paths}
            free = [path for path in free if path not in taken]
            self._under_way[key] = free
        usable = []
        for path in free:
            try:
                with open_npz(path, source="what an earlier update left", expect=schema) as opened:
                    opened.require_finite()
                usable.append(path)
            except BadModel as error:  # torn by a loss of power; what is lost with it is less than an update
                log.warning("what an earlier update left is dropped", key=str(key), error=str(error))
                path.unlink(missing_ok=True)
        return usable

    def _folder(self, key: AssignmentKey) -> Path:
        return self._root / _name(key.session_id)

    def _trim(self) -> None:
        """Remove what was left longest ago, if it is of more than :data:`SESSIONS_KEPT` sessions."""
        folders = sorted(self._root.iterdir(), key=lambda folder: folder.stat().st_mtime)
        for folder in folders[:-SESSIONS_KEPT]:
            shutil.rmtree(folder, ignore_errors=True)


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
