"""In which file format models go to the code of a package and come back; within the client all are ``.npz``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runnel.client.raw_models import read_raw, write_raw
from runnel.common.model_format import ModelFormat
from runnel.common.tensors import ModelSchema, convert, normalise, to_canonical
from runnel.compute_package import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelExchange:
    """How one package is given models.

    Args:
        form: of the files.
        raw_dtype: the files are nothing but numbers of this dtype, as two helpers of FEDn have them; None: they are
            not.
    """

    form: ModelFormat = ModelFormat.NPZ
    raw_dtype: str | None = None

    @classmethod
    def of(cls, manifest: Manifest, own: ModelFormat = ModelFormat.NPZ) -> ModelExchange:
        """Choose by what the package says, and else by the session's seed: ``own`` is the format that it has.

        Packages made for FEDn know no other format than FEDn's.
        """
        if manifest.speaks_fedn:
            return cls(raw_dtype=manifest.fedn.raw_dtype)
        return cls(form=manifest.model_format or own)

    @property
    def suffix(self) -> str:
        """Of the names of the files."""
        return self.form.suffix

    @property
    def lends(self) -> bool:
        """Whether a package may be given the client's own file."""
        return self.form is ModelFormat.NPZ and self.raw_dtype is None

    def give(self, model: Path, model_in: Path) -> None:
        """Write the ``.npz`` file ``model`` as the package wants it; only if it is not one that it :attr:`lends`."""
        if self.raw_dtype is not None:
            write_raw(model, model_in, self.raw_dtype)
        else:
            convert(model, model_in, self.form, source="the global model", form=ModelFormat.NPZ)

    def take(
        self, path: Path, target: Path, *, source: str, expect: ModelSchema | None, keep_plain: bool = False
    ) -> None:
        """Write what the package left at ``path`` as the ``.npz`` file ``target``.

        Args:
            path: a regular file; with ``keep_plain`` it may be moved.
            target: replaced if it exists.
            source: who wrote it, for messages.
            expect: the schema that it must have; None: any.
            keep_plain: see :func:`runnel.common.tensors.normalise`.

        Raises:
            BadModel: it is no such model, or not finite.
            StorageFull: no room.
        """
        if self.raw_dtype is None:
            to_canonical(path, target, self.form, source=source, expect=expect, keep_plain=keep_plain)
            return
        beside = target.with_name(f".{target.name}.raw")
        try:
            read_raw(path, beside, self.raw_dtype, schema=expect, source=source)
            normalise(beside, target, source=source, expect=expect, keep_plain=True)
        finally:
            beside.unlink(missing_ok=True)
