"""What initiators expect of a package's dependencies, from the folder on their desk to the run at a site."""

from __future__ import annotations

import os
import platform
import tarfile
from pathlib import Path
from textwrap import dedent

import pytest

from runnel.cli.main import main
from runnel.client.rehearsal import rehearse
from runnel.client.runtimes import Installs, PackageFiles, ProcessRuntime
from runnel.compute_package import read_manifest, unpack
from tests.doubles.client_packages import Listener, run_train, write_package
from tests.doubles.said import Said
from tests.doubles.wheels import write_wheel

pytestmark = pytest.mark.process

OFFLINE = dict(os.environ) | {"UV_NO_INDEX": "1"}
BACKEND = """
    import zipfile
    def build_wheel(folder, *_):
        name, info = 'mine-1-py3-none-any.whl', 'mine-1.dist-info/'
        with zipfile.ZipFile(folder + '/' + name, 'w') as wheel:
            wheel.write('mine.py')
            wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: mine\\nVersion: 1\\n')
            wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
            wheel.writestr(info + 'RECORD', 'mine.py,,\\n')
        return name
    """
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n'
MANIFEST = """
    name: study
    python: "{python}"
    include: [../lib, ../shared/formulas.py]
    exclude: ["*.csv"]
    force_include: [units.csv]
    """
TRAIN = """
    import formulas, greeting, mine
    greeting.main()
    print(mine.VALUE, formulas.VALUE, open("units.csv").read(), sep=", ")
    """


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a package, and beside it what it takes from elsewhere."""
    write_wheel(tmp_path / "wheels", "1.0")
    write_wheel(tmp_path / "wheels", "2.0")
    (tmp_path / "lib").mkdir()
    for name, text in {"b.py": BACKEND, "pyproject.toml": PROJECT, "mine.py": "VALUE = 'local package'"}.items():
        write_package_file(tmp_path / "lib" / name, text)
    write_package_file(tmp_path / "shared" / "formulas.py", "VALUE = 'local file'")
    python = platform.python_version().rpartition(".")[0]
    write_package(
        tmp_path / "study",
        {
            "train.py": TRAIN,
            "requirements.txt": "greeting==1.0\n./lib\n",
            "patients.csv": "1,2",
            "units.csv": "units",
            "runnel.yaml": MANIFEST.format(python=python),
        },
    )
    return tmp_path


def write_package_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))


def runnel(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Said:
    capsys.readouterr()
    status = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return Said(status=status, out=captured.out, err=captured.err)


def names(archive: Path) -> set[str]:
    with tarfile.open(archive) as opened:
        return set(opened.getnames())


async def test_what_is_declared_is_in_the_archive_and_in_the_run(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = runnel(capsys, "package", "build", desk / "study", "-o", desk / "study.tar.gz", "--json")
    assert said.status == 0
    assert names(desk / "study.tar.gz") == {
        *("formulas.py", "requirements.txt", "runnel.yaml", "train.py", "units.csv"),
        *("lib/b.py", "lib/mine.py", "lib/pyproject.toml"),
    }
    root = unpack(desk / "study.tar.gz", desk / "at the site")
    files, say = PackageFiles(digest="0" * 64, root=root, manifest=read_manifest(root)), Listener()
    packages = Installs(find_links=(str(desk / "wheels"),))
    async with ProcessRuntime(environments=desk / "e", environ=OFFLINE, installs=packages) as runtime:
        await run_train(runtime, await runtime.prepare(files, say), say)
    assert say.said("stdout") == ["hello 1.0", "local package, local file, units"]


def test_pins_are_exact_and_what_contradicts_itself_is_told_before_anything_is_sent(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_NO_INDEX", "1")
    (desk / "study" / "requirements.txt").write_text("greeting>=1\n./lib\n")
    pin = ("package", "pin", desk / "study", "--find-links", desk / "wheels")
    said = runnel(capsys, *pin, "--json")
    assert said.status == 0, said.err
    assert said.document["requirements"] == ["greeting==2.0", "./lib"]
    assert (desk / "study" / "requirements.pinned.txt").read_text().split() == ["greeting==2.0", "./lib"]
    (desk / "study" / "requirements.txt").write_text("greeting==1.0\ngreeting==2.0\n")
    said = runnel(capsys, *pin)
    assert said.status == 1
    assert "greeting==1.0 and greeting==2.0" in said.err


async def test_a_python_that_is_not_there_is_refused_with_both_named(desk: Path) -> None:
    manifest = desk / "study" / "runnel.yaml"
    manifest.write_text(manifest.read_text().replace(platform.python_version().rpartition(".")[0], "3.99"))
    seen = await rehearse(desk / "study", say=Listener(), environ=OFFLINE)
    assert seen.steps[-1].name == "environment"
    detail = seen.steps[-1].detail
    assert "runnel.yaml asks for Python 3.99, and this machine has" in detail
    assert platform.python_version() in detail


async def test_an_unchanged_package_is_built_once_and_one_byte_builds_it_again(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def installs() -> list[str]:
        say = Listener()
        packages = Installs(find_links=(str(desk / "wheels"),))
        await rehearse(desk / "study", say=say, environ=OFFLINE, installs=packages, environments=desk / "e")
        return [line for line in say.said("runnel") if line.startswith("uv: ")]

    assert await installs()
    capsys.readouterr()
    assert await installs() == []
    assert "environment found built" in capsys.readouterr().out
    (desk / "study" / "train.py").write_text("# another script\n")
    assert await installs() == []
    (desk / "lib" / "mine.py").write_text("VALUE = 'local packagf'\n")
    assert any("mine==1" in line for line in await installs())
    assert len(list((desk / "e").iterdir())) == 2


async def test_a_package_that_needs_the_system_is_refused_by_processes(desk: Path) -> None:
    manifest = desk / "study" / "runnel.yaml"
    manifest.write_text(manifest.read_text() + "apt: [libgomp1]\n")
    seen = await rehearse(desk / "study", say=Listener(), environ=OFFLINE, runtime="process")
    assert "in a container of an image with libgomp1, and this client runs entry points as processes" in (
        seen.steps[-1].detail
    )
    assert "--runtime docker" in seen.steps[-1].hint
