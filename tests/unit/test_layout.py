"""The shape of the source tree, which packaging and readers rely on."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PORTIONS = [ROOT / each for each in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
GENERATED = ROOT / "protos" / "gen"
FLOORS = {each.split(":")[0] for each in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
MOST_LINES = 450


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


# Installed elsewhere as a package of its own, under the names that packages of FEDn import.
SHIM = ROOT / "compute_package" / "runnel" / "compute_package" / "fedn_shim"
MODULES = [path for path in sources(*PORTIONS) if not (path.is_relative_to(GENERATED) or path.is_relative_to(SHIM))]
TESTS = [path for path in sources(ROOT / "tests") if path.name.startswith("test_")]


def shown(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def packages() -> list[Path]:
    """Every folder right below a ``runnel`` folder."""
    return [path for portion in PORTIONS for path in portion.iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_there_is_something_to_look_at() -> None:
    assert len(MODULES) > 50
    assert len(TESTS) > 20


def test_the_namespace_has_no_init() -> None:
    assert shown([portion / "__init__.py" for portion in PORTIONS if (portion / "__init__.py").exists()]) == []


def test_a_components_root_folder_has_no_modules() -> None:
    assert shown([path for portion in PORTIONS for path in portion.parent.glob("*.py")]) == []


def test_every_portion_is_in_the_wheel_and_in_the_editable_install() -> None:
    found = {path.parent for path in ROOT.glob("*/runnel") if any(path.rglob("*.py"))} | {GENERATED}
    assert {portion.parent for portion in PORTIONS} == found
    assert {ROOT / each for each in PROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"]} == found


def test_every_package_has_an_init() -> None:
    folders = {path.parent for path in MODULES} - set(PORTIONS)
    without = [
        folder for folder in folders if not (folder / "__init__.py").exists() and "migrations" not in folder.parts
    ]
    assert shown(sorted(without)) == []


def test_every_package_says_that_it_is_typed() -> None:
    assert shown([path for path in packages() if not (path / "py.typed").exists()]) == []


def test_modules_are_short() -> None:
    long = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert {str(path.relative_to(ROOT)): lines for path, lines in long.items() if lines > MOST_LINES} == {}


def test_modules_are_named_for_what_they_are() -> None:
    empty_words = {"utils", "util", "helpers", "helper", "misc", "manager", "common_utils"}
    assert shown([path for path in MODULES if path.stem in empty_words]) == []


def floor_of(path: Path) -> str | None:
    """Return ``unit`` from ``pytestmark = pytest.mark.unit`` (or from the first of a list), read without importing."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["pytestmark"]:
            first = node.value.elts[0] if isinstance(node.value, (ast.List, ast.Tuple)) else node.value
            found = re.fullmatch(r"pytest\.mark\.(\w+)", ast.unparse(first))
            return found[1] if found else None
    return None


def test_every_test_file_has_the_marker_of_its_floor() -> None:
    floors = {path: floor_of(path) for path in TESTS}
    assert shown([path for path, floor in floors.items() if floor not in FLOORS]) == []
    own = [path for path in TESTS if path.parent.name in FLOORS and path.parent.name != floors[path]]
    assert shown(own) == []


def test_every_proto_lies_in_the_folder_of_its_package() -> None:
    for path in (ROOT / "protos" / "runnel").rglob("*.proto"):
        (package,) = re.findall(r"^package (.+);$", path.read_text(), re.MULTILINE)
        assert path.parent.relative_to(ROOT / "protos").as_posix().replace("/", ".") == package


# ---- requirements


@pytest.mark.parametrize("name", ["dev", "demo"])
def test_requirements_are_pinned_by_hash_and_name_no_index(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    pins = [index for index, line in enumerate(lines) if re.match(r"[a-z0-9]", line)]
    assert len(pins) > 30
    assert [lines[index] for index in pins if not re.match(r"[\w.-]+==\S+( ; .+)? \\$", lines[index])] == []
    assert [lines[index] for index in pins if "--hash=sha256:" not in lines[index + 1]] == []
    others = [line for index, line in enumerate(lines) if index not in pins]
    assert [line for line in others if not re.match(r"    (--hash=sha256:[0-9a-f]{64}( \\)?|# via .+)$", line)] == []
    assert "://" not in "\n".join(lines)


def pins_of(name: str) -> set[str]:
    return set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / f"{name}.txt").read_text(), re.MULTILINE))


def named(requirements: list[str]) -> set[str]:
    """Return the normalised names of requirements, without this distribution itself."""
    names = {re.split(r"[\[<>=~! ;]", each)[0].lower().replace("_", "-") for each in requirements}
    return names - {"runnel"}


def test_every_dependency_is_pinned() -> None:
    project = PROJECT["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    assert named(project["dependencies"] + extras + PROJECT["dependency-groups"]["dev"]) <= pins_of("dev")
    optional = project["optional-dependencies"]
    (includes,) = [each for each in optional["demo"] if each.startswith("runnel[")]
    parts = [*includes.removeprefix("runnel[").removesuffix("]").split(","), "demo"]
    needed = [each for part in parts for each in optional[part]]
    assert named(project["dependencies"] + needed) <= pins_of("demo")


def test_what_builds_the_distribution_is_pinned_with_the_rest() -> None:
    wanted = (ROOT / "requirements" / "build.in").read_text().splitlines()
    assert [line for line in wanted if not line.startswith("#")] == PROJECT["build-system"]["requires"]
    assert named(PROJECT["build-system"]["requires"]) <= pins_of("demo") & pins_of("dev")
