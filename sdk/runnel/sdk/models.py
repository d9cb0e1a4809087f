"""Models of a network: seeds and the trail of what came of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runnel.sdk.connection import Connection
from runnel.sdk.paths import quoted
from runnel.sdk.transfers import Progress, download, push
from runnel.sdk.values import Model, read


class Models:
    """``network.models``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def push(self, file: str | Path, *, progress: Progress | None = None) -> Model:
        """Store a seed model (``.npz``).

        Raises:
            NotFound: there is no such file.
            BadModel: it is no model; the message tells why.
        """
        return read(Model, push(self._connection, "models", Path(file), progress=progress))

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

    def get(self, model: str, target: str | Path, *, progress: Progress | None = None) -> Model:
        """Download the model's file to ``target``, whole and verified or not at all."""
        found = self.show(model)
        download(
            self._connection,
            f"models/{quoted(found.model)}/content",
            Path(target),
            sha256=found.digest,
            size_bytes=found.size_bytes,
            progress=progress,
        )
        return found
