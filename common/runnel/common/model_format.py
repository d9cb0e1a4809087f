"""The file formats in which models are handed to people and to the code of compute packages."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from runnel.common.errors import InvalidInput


class ModelFormat(Enum):
    """A format of model files. Within a network models are ``.npz`` whatever their own format is."""

    NPZ = "npz"
    SAFETENSORS = "safetensors"

    @property
    def suffix(self) -> str:
        """Of file names, with the dot."""
        return f".{self.value}"

    @classmethod
    def parse(cls, text: str, *, field: str) -> ModelFormat:
        """Read the written form; ``field`` says where it stood.

        Raises:
            InvalidInput: there is no such format.
        """
        try:
            return cls(text)
        except ValueError:
            known = ", ".join(each.value for each in cls)
            raise InvalidInput(
                f"{field}: there is no model format {text!r:.80}; there are {known}.", field=field, got=text[:80]
            ) from None

    @classmethod
    def of_name(cls, path: Path) -> ModelFormat | None:
        """Return the format that the file name ``path`` ends with, or None."""
        return next((each for each in cls if path.suffix.lower() == each.suffix), None)
