"""The header of an array: what is remembered of it is what it says, and what is refused is refused each time."""

from __future__ import annotations

import pytest

from runnel.common.tensors.npy_header import HeaderFault, parse_header, write_header
from runnel.common.tensors.schema import TensorSpec

pytestmark = pytest.mark.unit


def test_equal_headers_are_parsed_once() -> None:
    header = write_header(TensorSpec(name="w", shape=(3, 4), dtype="float32"))
    first = parse_header(header)
    assert first.shape == (3, 4)
    assert parse_header(bytes(bytearray(header))) is first
    assert parse_header(header.replace(b"(3, 4)", b"(4, 3)")).shape == (4, 3)


def test_long_headers_take_no_memory_afterwards() -> None:
    header = write_header(TensorSpec(name="w", shape=(1,) * 32, dtype="float32"))
    padded = header[:8] + (1024 - 10).to_bytes(2, "little") + header[10:-1] + b" " * (1024 - len(header)) + b"\n"
    assert parse_header(padded) == parse_header(padded)
    assert parse_header(padded) is not parse_header(padded)


def test_a_refused_header_is_refused_again() -> None:
    header = write_header(TensorSpec(name="w", shape=(3,), dtype="float32")).replace(b"'<f4'", b"'|O' ")
    for _ in range(2):
        with pytest.raises(HeaderFault, match="Python objects"):
            parse_header(header)
