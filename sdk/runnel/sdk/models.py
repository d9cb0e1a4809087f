"""Models of a network: seeds and the trail of what came of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

from runnel.common.model_format import ModelFormat
from runnel.sdk.connection import Connection
from runnel.sdk.paths import quoted
from runnel.sdk.transfers import Progress, download, push
from runnel.sdk.values import Model, read


class Models:
    """``network.models``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def push(self, file: str | Path, *, progress: Progress | None = None) -> Model:
        """Store a seed model (``.npz`` or ``.safetensors``).

        Raises:
            NotFound: there is no such file.
            BadModel: it is no model; the message tells why.
        """
        return read(Model, push(self._connection, "models", Path(file), progress=progress))

    def remove(self, model: str) -> Model:
        """Remove a seed model that no session began with.

        Raises:
            Conflict: it is of a session.
        """
        return read(Model, self._connection.delete(f"models/{quoted(model)}"))

    def list(self, *, session: str | None = None) -> Iterator[Model]:
        """Yield all models, or those of one session, newest first."""
        return (read(Model, item) for item in self._connection.pages("models", session=session))

    def show(self, model: str) -> Model:
        """Return one model with its participants."""
        return read(Model, self._connection.get(f"models/{quoted(model)}"))

    def trail(self, model: str) -> Iterator[Model]:
        """Yield a model, its parent, and so on up to the seed."""
        upward: str | None = model
        while upward is not None:
            found = self.show(upward)
            yield found
            upward = found.parent

    def get(
        self, model: str, target: str | Path, *, format: str | None = None, progress: Progress | None = None
    ) -> Model:
        """Download the model's file to ``target``, whole and verified or not at all.

        Args:
            model: its id.
            target: replaced if it exists.
            format: ``"npz"`` or ``"safetensors"``; None: what ``target`` ends with, and else ``.npz``, in which the
                network keeps it. It is converted here.
            progress: told of the bytes that are fetched.

        Raises:
            InvalidInput: there is no such format, or ``target`` can't be written.
            BadModel: a tensor has a name that the format can't have.
            CorruptData: what came is not the model; ``target`` stays as it was.
            StorageFull: there is no room for it.
        """
        path = Path(target)
        wanted = ModelFormat.of_name(path) if format is None else ModelFormat.parse(format, field="format")
        found = self.show(model)
        if wanted in {None, ModelFormat.NPZ}:
            self._download(found, path, progress)
            return found
        assert wanted is not None
        from runnel.common.tensors import convert

        npz = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.npz")
        try:
            self._download(found, npz, progress)
            convert(npz, path, wanted, source=found.model, form=ModelFormat.NPZ)
        finally:
            npz.unlink(missing_ok=True)
        return found

    def _download(self, found: Model, target: Path, progress: Progress | None) -> None:
        download(
            self._connection,
            f"models/{quoted(found.model)}/content",
            target,
            sha256=found.digest,
            size_bytes=found.size_bytes,
            progress=progress,
        )
