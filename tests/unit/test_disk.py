from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.disk import read_json, write_bytes, write_json
from runnel.common.endpoints import Endpoints, read_endpoints, remove_endpoints, write_endpoints
from runnel.common.errors import CorruptData, InvalidInput, NotFound, StorageFull
from runnel.common.ids import new_id, new_secret, valid_name

pytestmark = pytest.mark.unit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(first=JSON, second=JSON)
def test_what_is_written_last_is_read(first: object, second: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("disk") / "x.json"
    write_json(path, first)
    write_json(path, second)
    assert read_json(path) == second
    assert [each.name for each in path.parent.iterdir()] == ["x.json"]


def test_permissions_are_those_asked_for(tmp_path: Path) -> None:
    write_bytes(tmp_path / "operator.token", b"x", mode=0o644)
    write_bytes(tmp_path / "operator.token", b"y", mode=0o600)
    assert stat.S_IMODE((tmp_path / "operator.token").stat().st_mode) == 0o600


@pytest.mark.parametrize("failing", ["fsync", "rename"])
@pytest.mark.parametrize(("number", "raised"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (5, OSError)])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    failing: str, number: int, raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, "old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(raised):
        write_json(path, "new")
    monkeypatch.undo()
    assert read_json(path) == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_missing_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"x\.json"):
        read_json(tmp_path / "x.json")
    for content in (b'{"a": ', b"\xff"):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(CorruptData, match=r"x\.json should hold JSON"):
            read_json(tmp_path / "x.json")


# ---- endpoints


def test_endpoints_are_written_read_and_removed(tmp_path: Path) -> None:
    path = write_endpoints(tmp_path, rpc="127.0.0.1:7400", http="127.0.0.1:7480")
    expected = {"rpc": "127.0.0.1:7400", "http": "127.0.0.1:7480", "pid": os.getpid()}
    assert json.loads(path.read_text()) == expected
    assert read_endpoints(tmp_path) == Endpoints(rpc="127.0.0.1:7400", http="127.0.0.1:7480", pid=os.getpid())
    remove_endpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove_endpoints(tmp_path)
    with pytest.raises(NotFound, match="Nothing serves from"):
        read_endpoints(tmp_path)


def test_endpoints_of_another_process_stay(tmp_path: Path) -> None:
    write_endpoints(tmp_path, rpc="127.0.0.1:1", pid=1)
    remove_endpoints(tmp_path)
    assert read_endpoints(tmp_path) == Endpoints(rpc="127.0.0.1:1", pid=1)


@pytest.mark.parametrize("content", ["[]", "{}", '{"pid": "x"}', '{"pid": 1, "rpc": 3}', "{"])
def test_endpoints_of_another_shape(content: str, tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text(content)
    with pytest.raises(CorruptData):
        read_endpoints(tmp_path)


# ---- ids


def test_ids() -> None:
    assert new_id("ses", random=lambda bits: 0) == "ses-0000000000"
    assert new_id("ses", random=lambda bits: (1 << bits) - 1) == "ses-zzzzzzzzzz"
    assert new_id("ses", random=lambda bits: 32) == "ses-0000000010"
    assert len({new_id("ses") for _ in range(1000)}) == 1000


def test_secrets_are_long_and_different() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
    assert all(len(new_secret()) == 56 and new_secret().startswith("rnl_") for _ in range(10))


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
def test_good_names(name: str) -> None:
    assert valid_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "_x", "a b", "a/b", "a\n", "é", "a" * 65, "a" * 10_000, "٣"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidInput, match="does not fit") as caught:
        valid_name(name)
    assert len(str(caught.value)) < 400
