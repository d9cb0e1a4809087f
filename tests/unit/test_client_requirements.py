"""What a package wants installed, and when two packages want the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.client.runtimes.python_versions import choose, read_listing, read_request
from runnel.client.runtimes.requirements import read_requirements
from runnel.common.errors import BadPackage, EnvironmentFailed

pytestmark = pytest.mark.unit


def write(folder: Path, text: str | bytes, name: str = "requirements.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(("text", "empty"), [("", True), ("# x\n\n  #y", True), ("numpy # x", False), ("-r o", False)])
def test_comments_ask_for_nothing(tmp_path: Path, text: str, empty: bool) -> None:
    write(tmp_path, "scipy", "o")
    assert read_requirements(write(tmp_path, text)).empty is empty


@pytest.mark.parametrize("text", ["numpy", "--find-links https://host/x\nnumpy", "a @ https://host/a.whl", "x==1.0"])
def test_only_the_text_counts_when_nothing_beside_it_is_used(tmp_path: Path, text: str) -> None:
    one, two = write(tmp_path / "one", text), write(tmp_path / "two", text + "  # why")
    write(tmp_path / "two", "other", "train.py")
    assert read_requirements(one).digest() == read_requirements(two).digest()
    assert read_requirements(write(tmp_path / "three", text + ".1")).digest() != read_requirements(one).digest()


@pytest.mark.parametrize(
    "text",
    [
        "-r more.txt",
        "-c more.txt",
        "--requirement=more.txt",
        "-e ./lib",
        "./lib",
        "lib/ ; python_version > '3'",
        "lib @ file:lib",
        "wheels/a-1-py3-none-any.whl",
        "a-1-py3-none-any.whl",
        "--find-links wheels",
        "-f wheels",
    ],
)
def test_what_lies_beside_counts_when_it_is_used_and_only_that(tmp_path: Path, text: str) -> None:
    digests: list[str] = []
    for content in ("1", "1", "2"):
        folder = tmp_path / str(len(digests))
        path = write(folder, text)
        for name in ("more.txt", "lib/setup.py", "wheels/a-1-py3-none-any.whl", "a-1-py3-none-any.whl"):
            write((folder / name).parent, content, Path(name).name)
        write(folder, str(len(digests)), "train.py")
        digests.append(read_requirements(path).digest())
    assert digests[0] == digests[1] != digests[2]


def test_includes_are_relative_to_who_includes_and_stand_in_their_place(tmp_path: Path) -> None:
    path = write(tmp_path, "first\n-r more/base.txt\nlast\n")
    write(tmp_path / "more", "-c limits.txt\nscipy\n-r ../base.txt\n--find-links wheels\n", "base.txt")
    write(tmp_path / "more", "numpy<3  # because\nfedn==0.9\n", "limits.txt")
    write(tmp_path, "-r requirements.txt\npandas", "base.txt")
    (tmp_path / "more" / "wheels").mkdir()
    read = read_requirements(path)
    assert read.lines == ("first", "scipy", "pandas", "--find-links {package}/more/wheels", "last")
    assert read.constraints == ("numpy<3",), "and who includes itself is read once"


def test_an_include_stays_in_the_package(tmp_path: Path) -> None:
    write(tmp_path, "secret", "site.txt")
    inner = write(tmp_path / "package" / "env", "-r ../../site.txt")
    with pytest.raises(BadPackage, match=r"includes '../../site.txt', which is not in the package"):
        read_requirements(inner, root=tmp_path / "package")
    write(tmp_path / "package", "numpy", "requirements.txt")
    inner.write_text("-r ../requirements.txt")
    assert read_requirements(inner, root=tmp_path / "package").lines == ("numpy",)


def test_one_hash_asks_for_hashes_everywhere(tmp_path: Path) -> None:
    hashed = "numpy==1.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n"
    read = read_requirements(write(tmp_path, hashed))
    assert [line.split() for line in read.lines] == [["numpy==1.0", "--hash=sha256:00", "--hash=sha256:11"]]
    assert read.hashed
    assert read_requirements(write(tmp_path, "--require-hashes\nnumpy")).hashed
    assert not read_requirements(write(tmp_path, "numpy")).hashed


FEDN = [
    "fedn",
    "fedn==0.33.0",
    "FEDn[flower]>=0.9,<1",
    "git+https://host/scaleoutsystems/fedn.git@develop#egg=fedn&subdirectory=fedn",
    "-e git+https://host/scaleoutsystems/fedn.git@develop#egg=fedn",
    "fedn @ git+https://host/scaleoutsystems/fedn@v0.9.0",
    "https://host/scaleoutsystems/fedn/archive/master.zip",
]


@pytest.mark.parametrize("line", FEDN)
def test_fedn_is_replaced_by_its_stand_in_however_it_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, f"name: e\ndependencies: ['{line}', numpy]", "python_env.yaml")
    assert read_requirements(path).lines == ("fedn @ {fedn-shim}", "numpy")
    assert read_requirements(path).fedn_shim
    assert read_requirements(path, fedn_shim=False).lines == (line.removeprefix("-e "), "numpy")


@pytest.mark.parametrize("line", ["fedn-utils", "notfedn", "./fedn", "fedn @ ./fedn", "git+https://host/me/my-fedn"])
def test_what_only_sounds_like_fedn_stays(tmp_path: Path, line: str) -> None:
    assert read_requirements(write(tmp_path, line)).lines == (line,)


def test_the_stand_in_keeps_marker_and_hash(tmp_path: Path) -> None:
    text = "fedn==0.9 ; python_version < '4' --hash=sha256:00"
    assert read_requirements(write(tmp_path, text)).lines == (
        'fedn @ {fedn-shim} ; python_version < "4" --hash=sha256:{fedn-shim}',
    )


def test_a_python_env_lists_both_kinds_and_names_its_python(tmp_path: Path) -> None:
    text = "name: e\npython: 3.10\nbuild_dependencies: [pip]\ndependencies:\n  - numpy\n  - scipy>1\n"
    read = read_requirements(write(tmp_path, text, "python_env.yaml"))
    assert read.lines == ("pip", "numpy", "scipy>1")
    assert (read.python, read.python_from) == ("3.10", "python_env.yaml"), "3.10 is no number"
    assert read_requirements(write(tmp_path, "name: e", "python_env.yaml")).empty


@pytest.mark.parametrize(
    ("request_text", "version", "fits"),
    [
        ("3.11", "3.11.7", True),
        ("3.11", "3.12.0", False),
        ("3.11.7", "3.11.6", False),
        ("python3.11", "3.11.0", True),
        ("3", "3.13.1", True),
        (">=3.9,<3.13", "3.12.1", True),
        (">=3.9,<3.13", "3.13.0", False),
        ("~=3.10", "3.12.0", True),
        (">=3.9", "3.12.0+local", True),
    ],
)
def test_which_python_will_do(request_text: str, version: str, fits: bool) -> None:
    assert read_request(request_text, "python_env.yaml").accepts(version) is fits


def test_the_newest_python_that_will_do_is_taken() -> None:
    listing = """\
cpython-3.13.0+freethreaded-linux-x86_64-gnu    /opt/3.13t/bin/python3.13t
cpython-3.12.1-linux-x86_64-gnu                 /opt/3.12/bin/python3.12
cpython-3.11.2-linux-x86_64-gnu                 /usr/bin/python3 -> python3.11
cpython-3.9.18-linux-x86_64-gnu                 /opt/3.9/bin/python3.9
pypy-3.11.13-linux-x86_64-gnu                   /opt/pypy/bin/pypy
warning: something was odd
""".splitlines()
    found = read_listing(listing)
    assert [one.version for one in found] == ["3.12.1", "3.11.2", "3.9.18"]
    assert choose(read_request(">=3.9", "x"), found).path == Path("/opt/3.12/bin/python3.12")
    assert choose(read_request("3.11", "x"), found).path == Path("/usr/bin/python3")
    with pytest.raises(
        EnvironmentFailed, match=r"python_env.yaml asks for Python 3.8, and this machine has 3.*, 3.9.18"
    ):
        choose(read_request("3.8", "python_env.yaml"), found)
    with pytest.raises(BadPackage, match="neither a version nor a range"):
        read_request("newest", "python_env.yaml")


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
        ("python_env.yaml", "python: [3.9]", "python in python_env.yaml should be a version"),
        ("requirements.txt", "-r gone.txt", r"names gone\.txt for its requirements but does not have it"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    with pytest.raises(BadPackage, match=says):
        read_requirements(write(tmp_path, text, name))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match=r"names requirements\.txt"):
        read_requirements(tmp_path / "requirements.txt")
