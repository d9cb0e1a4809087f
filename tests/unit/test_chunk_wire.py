"""Chunks as bytes are the messages that protobuf would make and read."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.errors import CorruptData
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.rpc.v1 import uplink_pb2_grpc as pb_grpc
from runnel.transport.chunk_wire import add_uplink, join_chunk, split_chunk

pytestmark = pytest.mark.unit

SIZES = [0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, 0x1F_FFFF, 0x20_0000]

headers = st.builds(
    pb.Chunk,
    blob=st.none() | st.builds(pb.BlobRef, sha256=st.binary(max_size=40), size_bytes=st.integers(0, 2**64 - 1)),
    offset=st.integers(0, 2**64 - 1),
    order_id=st.text(max_size=20),
)


def read(message: bytes) -> pb.Chunk:
    """Return what was split, as the message that protobuf makes of it."""
    header, data = split_chunk(message)
    chunk = pb.Chunk()
    chunk.CopyFrom(pb.Chunk() if header is None else header)
    chunk.data = bytes(data)
    return chunk


@given(headers, st.binary(max_size=300))
def test_what_is_joined_is_a_chunk_and_is_split_again(header: pb.Chunk, data: bytes) -> None:
    chunk = pb.Chunk()
    chunk.CopyFrom(header)
    chunk.data = data
    joined = join_chunk(memoryview(data), header.SerializeToString())
    assert pb.Chunk.FromString(joined) == chunk
    assert read(joined) == chunk
    assert read(chunk.SerializeToString()) == chunk


@pytest.mark.parametrize("size", SIZES)
def test_data_of_any_length_are_looked_at_where_they_came(size: int) -> None:
    data = bytes(size)
    joined = join_chunk(data)
    assert pb.Chunk.FromString(joined) == pb.Chunk(data=data)
    header, seen = split_chunk(joined)
    assert header is None
    assert seen == data
    assert seen.obj is joined


@given(st.binary(max_size=40) | st.binary(max_size=12).map(lambda rest: b"\x1a" + rest))
def test_any_bytes_are_read_as_protobuf_reads_them(message: bytes) -> None:
    try:
        expected = pb.Chunk.FromString(message)
    except Exception:  # noqa: BLE001 - whatever protobuf has against it
        with pytest.raises(CorruptData, match="not a chunk"):
            split_chunk(message)
    else:
        expected.DiscardUnknownFields()
        seen = read(message)
        seen.DiscardUnknownFields()
        assert seen == expected


@pytest.mark.parametrize(
    "message",
    [
        b"\x1a\x02a",  # shorter than it says
        b"\x1a\x00\x1a\x01b",  # the last one of two counts
        b"\x1a\x81\x00b",  # a length in more bytes than it needs
        b"\x1a\x81\x80\x80\x80\x00b",
        b"\x1a",
        b"\x1a\xff",
    ],
)
def test_unusual_bytes_are_read_as_protobuf_reads_them(message: bytes) -> None:
    test_any_bytes_are_read_as_protobuf_reads_them.hypothesis.inner_test(message)  # type: ignore[attr-defined]


class _Registered:
    """A server that only remembers what it is given."""

    def __init__(self) -> None:
        self.methods: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing is remembered of these."""

    def add_registered_method_handlers(self, service: str, methods: dict[str, Any]) -> None:
        self.methods = {f"/{service}/{name}": handler for name, handler in methods.items()}


def test_all_methods_are_served_as_the_protocol_has_them() -> None:
    ours, generated = _Registered(), _Registered()
    servicer: Any = cast("Any", pb_grpc.UplinkServicer)()
    add_uplink(servicer, cast("Any", ours))
    pb_grpc.add_UplinkServicer_to_server(servicer, cast("Any", generated))
    assert ours.methods.keys() == generated.methods.keys()
    for name, handler in generated.methods.items():
        seen = ours.methods[name]
        assert (seen.request_streaming, seen.response_streaming) == (
            handler.request_streaming,
            handler.response_streaming,
        )
