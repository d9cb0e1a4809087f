"""What a package wants installed, and when two packages want the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.client.runtimes.requirements import read_requirements
from runnel.common.errors import BadPackage

pytestmark = pytest.mark.unit


def write(folder: Path, text: str | bytes, name: str = "requirements.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(("text", "empty"), [("", True), ("# x\n\n  #y", True), ("numpy # x", False), ("-r o", False)])
def test_comments_ask_for_nothing(tmp_path: Path, text: str, empty: bool) -> None:
    assert read_requirements(write(tmp_path, text)).empty is empty


@pytest.mark.parametrize("text", ["numpy", "--find-links https://host/x\nnumpy", "a @ https://host/a.whl", "x==1.0"])
def test_only_the_text_counts_when_nothing_beside_it_is_used(tmp_path: Path, text: str) -> None:
    one, two = write(tmp_path / "one", text), write(tmp_path / "two", text)
    write(tmp_path / "two", "other", "train.py")
    assert read_requirements(one).digest() == read_requirements(two).digest()
    assert read_requirements(write(tmp_path / "three", text + " ")).digest() != read_requirements(one).digest()


@pytest.mark.parametrize(
    "text", ["-r more.txt", "-c more.txt", "-e .", "./lib", "lib @ file:lib", "--requirement=m", "wheels/a-1-py3.whl"]
)
def test_what_lies_beside_counts_when_it_is_used(tmp_path: Path, text: str) -> None:
    one, two, three = (write(tmp_path / name, text) for name in ("one", "two", "three"))
    write(tmp_path / "one" / "lib", "1", "setup.py")
    write(tmp_path / "two" / "lib", "1", "setup.py")
    write(tmp_path / "three" / "lib", "2", "setup.py")
    digests = [read_requirements(path).digest() for path in (one, two, three)]
    assert digests[0] == digests[1] != digests[2]


def test_a_python_env_lists_both_kinds(tmp_path: Path) -> None:
    text = "name: e\npython: '3.9'\nbuild_dependencies: [pip]\ndependencies:\n  - numpy\n  - scipy>1\n"
    path = write(tmp_path, text, "python_env.yaml")
    assert read_requirements(path).text == "pip\nnumpy\nscipy>1\n"
    assert read_requirements(write(tmp_path, "name: e", "python_env.yaml")).empty


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("requirements.txt", b"\xff\xfe\xff", "should be UTF-8"),
        ("requirements.txt", b"#" * (1 << 21), "larger than 1 MiB"),
        ("python_env.yaml", "a: [", "is not YAML"),
        ("python_env.yaml", "- numpy", "should be a mapping but is list"),
        ("python_env.yaml", "pip: [numpy]", "unknown key 'pip'"),
        ("python_env.yaml", "dependencies: numpy", "should be a list"),
        ("python_env.yaml", "dependencies: [{pip: x}]", "should be a list"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    with pytest.raises(BadPackage, match=says):
        read_requirements(write(tmp_path, text, name))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match=r"names requirements\.txt"):
        read_requirements(tmp_path / "requirements.txt")
