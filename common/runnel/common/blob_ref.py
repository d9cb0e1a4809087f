"""The name of a blob."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlobRef:
    """Names a blob by a digest of its bytes, in lower-case hex (64 characters), and tells its exact length.

    What people can have (packages, models, results) is named and kept by its SHA-256. What only nodes see, updates and
    sums, is named by its BLAKE3, which takes a fraction of the time. A model may have both: then the second is what is
    checked on its way through the network. Packages never do, for signatures vouch for their SHA-256.

    Two references are equal if name and length are.
    """

    sha256: str = ""
    size_bytes: int
    blake3: str = ""

    @property
    def name(self) -> str:
        """The SHA-256, else the BLAKE3; empty: nobody knows it yet."""
        return self.sha256 or self.blake3

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlobRef) and (self.name, self.size_bytes) == (other.name, other.size_bytes)

    def __hash__(self) -> int:
        return hash((self.name, self.size_bytes))
