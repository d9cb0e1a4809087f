"""Small archives that are laid out like one that was read before: what was checked then holds for them too.

All updates of a session are written by the same code, so their files differ in nothing but elements and checksums. To
compare the rest takes a twentieth of the time that it takes to check it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from runnel.common.tensors.npy_header import NpyHeader
from runnel.common.tensors.schema import ModelSchema
from runnel.common.tensors.zip_directory import Member

SMALL_BYTES = 64 << 10
_MOST = 32
_LOCAL_NBYTES, _LOCAL_FLAGS_AT, _LOCAL_CRC_AT, _LOCAL_NAME_AT = 30, 6, 14, 26
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_CENTRAL_CRC_AT = 16
_CRC_NBYTES = 4
_SIZES_FOLLOW = 0x8


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How archives of ``size`` bytes are laid out whose parts ``fixed`` are ``same``, joined.

    ``members`` have the checksums of the one that it was learnt from; those of others are at ``crcs_at``: of each
    member in its own header and in the directory.
    """

    size: int
    fixed: tuple[slice, ...]
    same: bytes
    crcs_at: tuple[tuple[int, int], ...]
    members: tuple[Member, ...]
    headers: tuple[NpyHeader, ...]
    schema: ModelSchema

    def members_of(self, data: bytes) -> tuple[Member, ...] | None:
        """Return where the members of the archive ``data`` are; None: it is laid out in another way."""
        if len(data) != self.size or b"".join([data[part] for part in self.fixed]) != self.same:
            return None
        found = []
        for (own, told), member in zip(self.crcs_at, self.members, strict=True):
            crc = data[told : told + _CRC_NBYTES]
            if data[own : own + _CRC_NBYTES] != crc:
                return None
            found.append(replace(member, crc=int.from_bytes(crc, "little")))
        return tuple(found)


class KnownLayouts:
    """The layouts that were met last, a few of them; may be used by several threads."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._known: tuple[Layout, ...] = ()

    def find(self, data: bytes) -> tuple[Layout, tuple[Member, ...]] | None:
        """Return how an archive is laid out, and its members, if that is known."""
        known = self._known
        for layout in known:
            if (members := layout.members_of(data)) is not None:
                if layout is not known[0]:
                    self._put_first(layout)
                return layout, members
        return None

    def learn(
        self, data: bytes, members: tuple[Member, ...], headers: tuple[NpyHeader, ...], schema: ModelSchema
    ) -> None:
        """Remember how an archive is laid out of which everything was checked but the elements, if that can be."""
        if (layout := _layout(data, members, headers, schema)) is not None:
            self._put_first(layout)

    def _put_first(self, layout: Layout) -> None:
        # One assignment: a thread that comes in between loses the memory of an archive, and nothing else.
        self._known = (layout, *(other for other in self._known if other is not layout))[: self._most]


def _layout(
    data: bytes, members: tuple[Member, ...], headers: tuple[NpyHeader, ...], schema: ModelSchema
) -> Layout | None:
    """Return the layout of an archive, None if a part of it is not where it is in what numpy writes."""
    crcs_at = _crcs_at(data, members)
    if crcs_at is None:
        return None
    free = [slice(at, at + _CRC_NBYTES) for both in crcs_at for at in both]
    for member, header in zip(members, headers, strict=True):
        free.append(slice(member.offset + header.nbytes, member.offset + member.nbytes))
    fixed, at = [], 0
    for part in sorted(free, key=lambda part: part.start):
        if part.start < at:
            return None
        fixed.append(slice(at, part.start))
        at = part.stop
    fixed.append(slice(at, len(data)))
    layout = Layout(
        size=len(data),
        fixed=tuple(fixed),
        same=b"".join(data[part] for part in fixed),
        crcs_at=crcs_at,
        members=members,
        headers=headers,
        schema=schema,
    )
    return layout if layout.members_of(data) == members else None


def _crcs_at(data: bytes, members: tuple[Member, ...]) -> tuple[tuple[int, int], ...] | None:
    """Return where the checksums of the members are, in their own headers and in the directory."""
    found = []
    at = data.find(b"PK\x01\x02", max(member.offset + member.raw_nbytes for member in members))
    for member in members:
        name = f"{member.key}.npy".encode()
        if member.deflated or at < 0 or data[at : at + 4] != b"PK\x01\x02" or len(data) < at + _CENTRAL.size:
            return None
        entry = _CENTRAL.unpack_from(data, at)
        own, (name_nbytes, extra_nbytes, comment_nbytes) = entry[16], entry[10:13]
        begins = at + _CENTRAL.size
        if data[begins : begins + name_nbytes] != name or len(data) < own + _LOCAL_NBYTES:
            return None
        flags = int.from_bytes(data[own + _LOCAL_FLAGS_AT : own + _LOCAL_FLAGS_AT + 2], "little")
        own_names = struct.unpack_from("<2H", data, own + _LOCAL_NAME_AT)
        if flags & _SIZES_FOLLOW or own + _LOCAL_NBYTES + sum(own_names) != member.offset:
            return None
        found.append((own + _LOCAL_CRC_AT, at + _CENTRAL_CRC_AT))
        at = begins + name_nbytes + extra_nbytes + comment_nbytes
    return tuple(found)
