"""Updates in fewer bytes, each way with its error stated.

================  ==================  =====================================================================  ========
compression       bytes an element    error of a difference to the global model                              feedback
================  ==================  =====================================================================  ========
``fp16``          2                   2^-11 of it (2^-25 below 2^-14; beyond 65504 refused)                  no
``bf16``          2                   2^-8 of it                                                             no
``int8``          1.004               half a step: the largest of its 1,024 neighbours divided by 254        yes
``top-k[:F]``     8 F                 all of it, but for the F largest of its tensor, which are exact        yes
``zstd``          what it comes to    none                                                                   no
================  ==================  =====================================================================  ========

Bytes are of a float32 model. ``X+zstd`` packs what ``X`` made. The sum with the global model is rounded to the dtype of
the tensor besides. Integers, booleans, tensors up to 1 KiB and those that would not become smaller are always exact.

Feedback: what an update left out, the rounding included, is added to the next update of the same client, if the first
was counted: over many rounds nothing is lost, it comes later.
"""

from runnel.common.compression.codecs import (
    CODECS,
    COMPRESSIONS,
    NO_COMPRESSION,
    Compression,
    parse_compression,
)
from runnel.common.compression.container import (
    decode_in_place,
    decode_update,
    decoded_update,
    decoding_bytes,
    encode_update,
    residual_schema,
)

__all__ = [
    "CODECS",
    "COMPRESSIONS",
    "NO_COMPRESSION",
    "Compression",
    "decode_in_place",
    "decode_update",
    "decoded_update",
    "decoding_bytes",
    "encode_update",
    "parse_compression",
    "residual_schema",
]
