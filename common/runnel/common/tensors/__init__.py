"""Models as files: their schema, reading them from strangers, writing them so that equal ones have equal digests.

Everything here is synchronous and reads or writes files: call it in a thread. Nothing loads a model whole unless its
documentation says so.
"""

from runnel.common.tensors.atomic_file import AtomicFile
from runnel.common.tensors.casting import cast_block
from runnel.common.tensors.npz import DEFAULT_MAX_BYTES, Block, NpzModel, magnitude, open_npz
from runnel.common.tensors.npz_writer import NpzWriter, normalise, write_npz
from runnel.common.tensors.schema import BLOCK_PARAMS, DTYPES, ModelSchema, Span, TensorSpec

__all__ = [
    "BLOCK_PARAMS",
    "DEFAULT_MAX_BYTES",
    "DTYPES",
    "AtomicFile",
    "Block",
    "ModelSchema",
    "NpzModel",
    "NpzWriter",
    "Span",
    "TensorSpec",
    "cast_block",
    "magnitude",
    "normalise",
    "open_npz",
    "write_npz",
]
