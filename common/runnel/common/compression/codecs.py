"""The written forms of compressions, and which codec each of them is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runnel.common.compression.codec import Codec
from runnel.common.compression.half import Bf16, Fp16
from runnel.common.compression.int8 import Int8
from runnel.common.compression.top_k import DEFAULT_FRACTION, MAX_FRACTION, TopK
from runnel.common.errors import InvalidInput

NO_COMPRESSION = "none"
ZSTD = "zstd"

CODECS: Mapping[str, Callable[[], Codec]] = {"fp16": Fp16, "bf16": Bf16, "int8": Int8, "top-k": TopK}
"""What is lossy, by name; ``top-k`` may be followed by ``:FRACTION``."""

COMPRESSIONS = f"{NO_COMPRESSION}, {', '.join(CODECS)}[:FRACTION], {ZSTD}, or one of them +{ZSTD}"
"""For people: what may be asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """How updates travel: encoded by ``codec`` (None: as they are), then, if ``zstd``, losslessly packed."""

    codec: Codec | None = None
    zstd: bool = False

    @property
    def is_none(self) -> bool:
        """Whether updates travel as plain models."""
        return self.codec is None and not self.zstd

    def __str__(self) -> str:
        names = [name for name, kind in CODECS.items() if isinstance(self.codec, type(kind()))]
        if isinstance(self.codec, TopK):
            names = [f"top-k:{self.codec.fraction:.15g}"]
        return "+".join([*names, ZSTD] if self.zstd else names) or NO_COMPRESSION


def parse_compression(text: str) -> Compression:
    """Read the written form of a compression; its ``str`` is the canonical one.

    Raises:
        InvalidInput: there is no such compression; the message tells those that there are.

    >>> str(parse_compression("top-k+zstd"))
    'top-k:0.01+zstd'
    >>> parse_compression("none").is_none
    True
    """
    name, plus, packing = text.partition("+")
    if (plus and packing != ZSTD) or (name == ZSTD and plus):
        raise _unknown(text)
    if name in {NO_COMPRESSION, ZSTD}:
        return Compression(zstd=bool(plus) or name == ZSTD)
    name, colon, fraction = name.partition(":")
    if name not in CODECS or (colon and name != "top-k"):
        raise _unknown(text)
    codec = TopK(fraction=_fraction(fraction, text)) if name == "top-k" and colon else CODECS[name]()
    return Compression(codec=codec, zstd=bool(plus))


def _fraction(text: str, whole: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 1e-6 <= fraction <= MAX_FRACTION:
        raise InvalidInput(
            f"compress: the fraction of {whole!r} has to be a number from 0.000001 to {MAX_FRACTION:g}.",
            hint=f"top-k without a fraction keeps {DEFAULT_FRACTION:g} of each tensor.",
            field="compress",
            got=whole,
        )
    return fraction


def _unknown(text: str) -> InvalidInput:
    return InvalidInput(
        f"compress: there is no compression {text!r:.80}; there are {COMPRESSIONS}.", field="compress", got=text[:80]
    )
