"""The committed stubs are those that the protos make, and run on what the project asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tools.generate_stubs import PROTOS, generate

pytestmark = pytest.mark.unit

GENERATED = PROTOS / "gen"
PROJECT = tomllib.loads((PROTOS.parent / "pyproject.toml").read_text())


def committed() -> dict[Path, bytes]:
    files = [path for path in (GENERATED / "runnel").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(GENERATED): path.read_bytes() for path in files}


def test_generating_again_changes_nothing(tmp_path: Path) -> None:
    made = {path: (tmp_path / path).read_bytes() for path in generate(tmp_path)}
    assert sorted(made) == sorted(committed())
    differing = [str(path) for path, content in made.items() if content != committed()[path]]
    assert differing == [], "run make protos"


def test_each_proto_has_its_four_files() -> None:
    protos = sorted((PROTOS / "runnel").rglob("*.proto"))
    assert protos
    for proto in protos:
        stem = proto.relative_to(PROTOS).with_suffix("").as_posix()
        endings = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
        assert {Path(f"{stem}{ending}") for ending in endings} <= set(committed())


def least(name: str) -> Version:
    """Return the lowest version of ``name`` that the project accepts."""
    (found,) = [each for each in map(Requirement, PROJECT["project"]["dependencies"]) if each.name == name]
    (floor,) = [each.version for each in found.specifier if each.operator == ">="]
    return Version(floor)


def asked(pattern: str) -> set[Version]:
    """Return the versions that the stubs name in a line of this pattern."""
    return {Version(each) for content in committed().values() for each in re.findall(pattern, content.decode())}


def test_the_project_asks_for_no_less_than_its_stubs_do() -> None:
    (protobuf,) = asked(r"# Protobuf Python Version: (\S+)")
    (grpc,) = asked(r"GRPC_GENERATED_VERSION = '(\S+)'")
    assert least("protobuf") >= protobuf
    assert least("grpcio") >= grpc
    assert f"grpcio-tools=={grpc}" in PROJECT["dependency-groups"]["dev"]
