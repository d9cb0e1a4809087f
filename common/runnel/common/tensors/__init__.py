"""Models as files: their schema, reading them from strangers, writing them so that equal ones have equal digests.

Everything here is synchronous and reads or writes files: call it in a thread. Nothing loads a model whole unless its
documentation says so.
"""

from runnel.common.tensors.atomic_file import AtomicFile
from runnel.common.tensors.background_writer import BackgroundWriter
from runnel.common.tensors.casting import cast_block
from runnel.common.tensors.conversion import (
    Arrange,
    convert,
    find_format,
    like,
    named,
    numbered,
    open_model,
    to_canonical,
)
from runnel.common.tensors.dtypes import BFLOAT16, largest_value, numpy_dtype, round_to_bfloat16
from runnel.common.tensors.npz import DEFAULT_MAX_BYTES, Block, NpzModel, magnitude, open_npz
from runnel.common.tensors.npz_writer import NpzWriter, normalise, write_npz
from runnel.common.tensors.safetensors import SafetensorsModel, SafetensorsWriter, open_safetensors
from runnel.common.tensors.schema import BLOCK_PARAMS, DTYPES, ModelSchema, Span, TensorSpec

__all__ = [
    "BFLOAT16",
    "BLOCK_PARAMS",
    "DEFAULT_MAX_BYTES",
    "DTYPES",
    "Arrange",
    "AtomicFile",
    "BackgroundWriter",
    "Block",
    "ModelSchema",
    "NpzModel",
    "NpzWriter",
    "SafetensorsModel",
    "SafetensorsWriter",
    "Span",
    "TensorSpec",
    "cast_block",
    "convert",
    "find_format",
    "largest_value",
    "like",
    "magnitude",
    "named",
    "normalise",
    "numbered",
    "numpy_dtype",
    "open_model",
    "open_npz",
    "open_safetensors",
    "round_to_bfloat16",
    "to_canonical",
    "write_npz",
]
