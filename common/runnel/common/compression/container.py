"""Compressed updates as files: made by clients, turned back into plain models by whoever folds them.

The file is an ``.npz`` like a model, stored and without anything pickled. Tensor number ``i`` of the model becomes the
members ``i/PART`` of its codec, flat; a tensor that is no float, has no more than 1 KiB or would not become smaller is
the one member ``i/exact``. All names, lengths and dtypes follow from the global model and the compression, so a
receiver requires exactly these before it reads a number.

All functions block; call them in a thread. They hold some blocks in memory, and for top-k what it keeps of one tensor.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.common.compression.codec import Blocks, Codec, wide
from runnel.common.compression.codecs import Compression
from runnel.common.compression.layout import Layout, largest_file
from runnel.common.compression.zstd import compress_file, decompress_file
from runnel.common.disk import sync_folder
from runnel.common.errors import BadModel
from runnel.common.storage import sync_file
from runnel.common.tensors import ModelSchema, NpzModel, NpzWriter, normalise, numpy_dtype, open_npz


def encode_update(
    update: Path,
    target: Path,
    *,
    compression: Compression,
    base: Path,
    carried: Sequence[Path] = (),
    left: Path | None = None,
) -> bool:
    """Write ``update`` compressed to ``target``.

    Args:
        update: a model of the schema of ``base``, finite; not modified.
        target: replaced.
        compression: not none.
        base: the global model that was trained.
        carried: what earlier updates left; their sum is added before encoding. Without feedback nothing is carried.
        left: where to write what this one leaves: (update + carried) - what the receiver will make of ``target``.

    Returns:
        Whether ``left`` was written: only if the codec has feedback and something is not sent exactly.

    Raises:
        BadModel: another schema, or a difference is beyond what the codec can tell.
        StorageFull: no room.
    """
    if compression.codec is None:
        compress_file(update, target)
        return False
    with contextlib.ExitStack() as stack:
        encoding = _Encoding(stack, update, base, carried, compression.codec)
        plain = stack.enter_context(_beside(target)) if compression.zstd else target
        encoding.write(plain)
        written = left is not None and encoding.write_left(plain, left)
        if compression.zstd:
            compress_file(plain, target)
    return written


def decode_update(encoded: Path, target: Path, *, compression: Compression, base: Path, source: str) -> None:
    """Write the model that ``encoded`` stands for to ``target``: a stored ``.npz`` of the schema of ``base``.

    Its numbers are the sums of ``base`` and the differences, in the dtypes of ``base``. That they are finite is for the
    reader to check, as of any update.

    Args:
        encoded: of :func:`encode_update`, from anybody; not modified, unless it is ``target``.
        target: replaced; whole or as it was.
        compression: of the order that is answered; not none.
        base: the global model of that order.
        source: whose update it is, for messages.

    Raises:
        BadModel: it is no such file; the message names ``source``. At most the bytes of one model were unpacked.
        StorageFull: no room.
    """
    codec = compression.codec
    with open_npz(base, source="the global model") as model, contextlib.ExitStack() as stack:
        layout = None if codec is None else Layout(model.schema, codec)
        wanted = model.schema if layout is None else layout.encoded
        if compression.zstd:
            unpacked = stack.enter_context(_beside(target))
            decompress_file(encoded, unpacked, max_bytes=largest_file(wanted), sender=source)
            encoded = unpacked
        if codec is None or layout is None:
            normalise(encoded, target, source=source, expect=wanted, require_finite=False)
            return
        parts = stack.enter_context(open_npz(encoded, source=source))
        _require_encoded(parts, wanted, compression, source)
        writer = stack.enter_context(NpzWriter(target, model.schema))
        try:
            for number in range(len(model.schema.tensors)):
                for block in _decoded(model, parts, layout, codec, number):
                    writer.append(block)
        except BadModel as error:
            told = error.fields | {"source": source}
            raise BadModel(f"The update of {source}: {error.message}", hint=error.hint, **told) from error


def decoding_bytes(compression: Compression, model_bytes: int) -> int:
    """Return how much room decoding an update takes at most, besides that of the update as it was pushed.

    Args:
        compression: of the update.
        model_bytes: of the global model.
    """
    if compression.is_none:
        return 0
    return 2 * model_bytes if compression.zstd else model_bytes  # the unpacked file lies beside what is made of it


def decode_in_place(encoded: Path, *, compression: Compression, base: Path, source: str) -> None:
    """Replace ``encoded`` by the plain model that it stands for, on the disk before this returns.

    Arguments and errors are those of :func:`decode_update`; without compression nothing is done.
    """
    if not compression.is_none:
        decode_update(encoded, encoded, compression=compression, base=base, source=source)
        sync_file(encoded)
        sync_folder(encoded.parent)


@contextmanager
def decoded_update(encoded: Path, *, compression: Compression, base: Path, source: str) -> Iterator[Path]:
    """Give the plain model that ``encoded`` stands for, as a file beside it that is removed at the end.

    Without compression that is ``encoded`` itself. Arguments and errors are those of :func:`decode_update`.
    """
    if compression.is_none:
        yield encoded
        return
    with _beside(encoded) as plain:
        decode_update(encoded, plain, compression=compression, base=base, source=source)
        yield plain


def residual_schema(model: ModelSchema, compression: Compression) -> ModelSchema | None:
    """Return the schema of what an update of ``model`` leaves for the next one; None: nothing, ever."""
    return None if compression.codec is None else Layout(model, compression.codec).left


class _Encoding:
    """An update, the model that it began with and what earlier ones left, open side by side."""

    def __init__(
        self, stack: contextlib.ExitStack, update: Path, base: Path, carried: Sequence[Path], codec: Codec
    ) -> None:
        self._codec = codec
        self._base = stack.enter_context(open_npz(base, source="the global model"))
        self._schema = self._base.schema
        self._layout = Layout(self._schema, codec)
        self._update = stack.enter_context(open_npz(update, source="the entry point train", expect=self._schema))
        self._carried: list[NpzModel] = []
        if (left := self._layout.left) is not None:
            for path in carried:
                opened = open_npz(path, source="what earlier updates left", expect=left)
                self._carried.append(stack.enter_context(opened))

    def write(self, target: Path) -> None:
        """Write the encoded update."""
        with NpzWriter(target, self._layout.encoded) as writer:
            for number, spec in enumerate(self._schema.tensors):
                if self._layout.exact(number) is None:
                    differences = functools.partial(self._differences, number)
                    self._codec.encode(differences, spec.n_params, writer.append)
                else:
                    for block in self._update.tensor_blocks(number):
                        writer.append(block)

    def write_left(self, encoded: Path, left: Path) -> bool:
        """Write what the receiver will miss: it is asked, not computed a second way, so its rounding is in it too."""
        if self._layout.left is None:
            return False
        with (
            open_npz(encoded, source="the compressed update") as parts,
            NpzWriter(left, self._layout.left) as writer,
        ):
            for number in range(len(self._schema.tensors)):
                if self._layout.left_place(number) is not None:
                    arrived = _decoded(self._base, parts, self._layout, self._codec, number)
                    for block in self._less(number, arrived):
                        writer.append(block)
        return True

    def _differences(self, number: int) -> Blocks:
        return self._less(number, self._base.tensor_blocks(number))

    def _less(self, number: int, others: Blocks) -> Blocks:
        """Hand out (update - other) + carried of one tensor; in this order, for update and other are close."""
        dtype = wide(self._schema.tensors[number].dtype)
        carried = self._carried_blocks(number)
        for new, other in zip(self._update.tensor_blocks(number), others, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):
                block: NDArray[Any] = new.astype(dtype, copy=False) - other.astype(dtype, copy=False)
                for blocks in carried:
                    block += next(blocks)
            if not np.isfinite(block).all():
                name = self._schema.tensors[number].name
                raise BadModel(
                    f"The update is too far from the global model in {name!r}: {dtype} can't tell the difference.",
                    hint="Training diverged: try a smaller learning rate, or look at the data.",
                    tensor=name,
                )
            yield block

    def _carried_blocks(self, number: int) -> list[Blocks]:
        place = self._layout.left_place(number)
        return [] if place is None else [model.tensor_blocks(place) for model in self._carried]


def _decoded(base: NpzModel, parts: NpzModel, layout: Layout, codec: Codec, number: int) -> Blocks:
    """Hand out one tensor as the receiver sees it, in its own dtype."""
    exact = layout.exact(number)
    if exact is not None:
        yield from parts.tensor_blocks(exact)
        return
    spec = base.schema.tensors[number]
    dtype = wide(spec.dtype)

    def read(part: str, block_params: int) -> Blocks:
        return parts.tensor_blocks(layout.place(number, part), block_params)

    for old, difference in zip(base.tensor_blocks(number), codec.decode(read, spec.n_params, dtype), strict=True):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            yield (old.astype(dtype, copy=False) + difference).astype(numpy_dtype(spec.dtype), copy=False)


def _require_encoded(parts: NpzModel, wanted: ModelSchema, compression: Compression, source: str) -> None:
    if parts.is_deflated:
        raise BadModel(f"The update of {source} is deflated; compressed ones are stored as they are.", source=source)
    try:
        wanted.require_same(parts.schema, source=source)
    except BadModel as error:
        raise BadModel(
            f"The update of {source} is not compressed by {compression}. {error.message}",
            hint="It may run another version of Runnel.",
            source=source,
        ) from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give the name of a file in the folder of ``path``, which is removed at the end."""
    file = path.with_name(f".{path.name[:60]}-{secrets.token_hex(6)}.plain")
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
