"""What a package needs of its image: packages of the system, wheels of the site, its Python."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from runnel.client.runtimes import Installs, PackageFiles
from runnel.common.errors import EnvironmentFailed
from runnel.compute_package import read_manifest
from tests.docker_engine import base_image, docker, docker_runtime, forget_images, inspect, with_base
from tests.doubles.client_packages import Listener, run_train, write_package
from tests.doubles.wheels import write_wheel

pytestmark = pytest.mark.docker

# A repository of one package in a folder: apt works as always, and nothing is fetched from anywhere.
REPOSITORY = r"""
FROM {base}
RUN mkdir -p /repository /tmp/p/DEBIAN /tmp/p/usr/share/runnel-test && cd /repository \
 && printf 'Package: runnel-test\nVersion: 1.5\nArchitecture: all\nMaintainer: t <t@example.org>\nDescription: t\n' \
    > /tmp/p/DEBIAN/control \
 && echo from apt > /tmp/p/usr/share/runnel-test/word && dpkg-deb --build /tmp/p runnel-test.deb > /dev/null \
 && cat /tmp/p/DEBIAN/control > Packages \
 && printf 'Filename: ./runnel-test.deb\nSize: %s\nSHA256: %s\n' $(stat -c %s runnel-test.deb) \
    $(sha256sum runnel-test.deb | cut -d ' ' -f 1) >> Packages \
 && rm -f /etc/apt/sources.list /etc/apt/sources.list.d/* \
 && echo 'deb [trusted=yes] file:/repository ./' > /etc/apt/sources.list
"""


@pytest.fixture
def say() -> Listener:
    return Listener()


@pytest.fixture
def digest() -> Iterator[str]:
    """The digest of a package that the engine has never seen; its images are removed."""
    made = hashlib.sha256(secrets.token_bytes(16)).hexdigest()
    yield made
    forget_images(made)


def package(root: Path, digest: str, files: dict[str, str]) -> PackageFiles:
    write_package(root, {"train.py": "pass"} | files)
    return PackageFiles(digest=digest, root=root, manifest=read_manifest(root))


@pytest.fixture
def with_repository(tmp_path: Path) -> Iterator[str]:
    name = f"runnel-test-apt:{secrets.token_hex(6)}"
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "Dockerfile").write_text(REPOSITORY.format(base=base_image()))
    docker("build", "--tag", name, str(tmp_path / "base"))
    yield name
    docker("rmi", "--force", name)


async def test_packages_of_the_system_and_wheels_of_the_site_are_in_the_image(
    tmp_path: Path, digest: str, say: Listener, with_repository: str
) -> None:
    files = {
        "runnel.yaml": "apt: [runnel-test=1.5]",
        "requirements.txt": "--no-index\ngreeting==1.0\n",
        "train.py": "import greeting; greeting.main(); print(open('/usr/share/runnel-test/word').read().strip())",
    }
    made = package(tmp_path / "package", digest, files)
    write_wheel(tmp_path / "site")
    (tmp_path / "site" / "notes.txt").write_text("nothing that is installed")
    installs = Installs(find_links=(str(tmp_path / "site"),))
    for start in ("first", "second"):
        async with docker_runtime(tmp_path, base_image=with_repository, installs=installs) as runtime:
            prepared = await runtime.prepare(made, say)
            await run_train(runtime, prepared, say)
        assert say.said("stdout") == ["hello 1.0", "from apt"], say.lines
        assert bool(say.said("runnel")) is (start == "first")
        say.lines.clear()


async def test_what_apt_does_not_have_is_told(tmp_path: Path, digest: str, say: Listener, with_repository: str) -> None:
    made = package(tmp_path / "package", digest, {"runnel.yaml": "apt: [no-such-thing]"})
    async with docker_runtime(tmp_path, base_image=with_repository) as runtime:
        with pytest.raises(EnvironmentFailed, match="no-such-thing"):
            await runtime.prepare(made, say)


async def test_an_image_with_another_python_is_refused_with_both_named(
    tmp_path: Path, digest: str, say: Listener
) -> None:
    own = docker("run", "--rm", "--network", "none", base_image(), "python3", "-V").stdout.split()[1]
    minor = own.rpartition(".")[0]
    async with docker_runtime(tmp_path) as runtime:
        made = package(tmp_path / "right", digest, {"runnel.yaml": f'python: "{minor}"'})
        await run_train(runtime, await runtime.prepare(made, say), say)
        wrong = package(tmp_path / "wrong", digest, {"runnel.yaml": 'python: "3.99"'})
        with pytest.raises(EnvironmentFailed) as caught:
            await runtime.prepare(wrong, say)
    asked = f"runnel.yaml asks for Python 3.99, and the image that the package would run in has Python {own}."
    assert asked in str(caught.value)


async def test_a_dockerfile_is_told_the_python_that_is_asked_for(tmp_path: Path, digest: str, say: Listener) -> None:
    lines = ["ARG PYTHON_VERSION=none", "RUN echo $PYTHON_VERSION > /opt/asked"]
    files = {"Dockerfile": with_base(lines), "train.py": "print(open('/opt/asked').read().strip())"}
    own = docker("run", "--rm", "--network", "none", base_image(), "python3", "-V").stdout.split()[1]
    minor = own.rpartition(".")[0]
    made = package(tmp_path / "package", digest, files | {"runnel.yaml": f'python: "{minor}"'})
    async with docker_runtime(tmp_path) as runtime:
        await run_train(runtime, await runtime.prepare(made, say), say)
    assert say.said("stdout") == [minor]


async def test_images_that_are_too_old_or_too_much_go_and_come_again_for_who_wants_them(
    tmp_path: Path, digest: str, say: Listener
) -> None:
    other = hashlib.sha256(digest.encode()).hexdigest()
    files = {"Dockerfile": with_base([f"RUN head -c 2000000 /dev/urandom > /opt/{digest[:8]}"])}
    first, second = (package(tmp_path / name, name, files) for name in (digest, other))
    try:
        async with docker_runtime(tmp_path, installs=Installs(most_bytes=3_000_000)) as runtime:
            old = await runtime.prepare(first, say)
            await run_train(runtime, old, say)
            recent = await runtime.prepare(second, say)
            assert inspect("image", old.image.id), "both were used within the hour"
            (use,) = [one for one in (tmp_path / "images").iterdir() if one.name.startswith(digest)]
            os.utime(use, (0, 0))
            await runtime.prepare(second, say)
            assert docker("image", "inspect", old.image.id, check=False).returncode == 1
            assert not use.exists()
            assert inspect("image", recent.image.id)
            say.lines.clear()
            await run_train(runtime, old, say)
            assert "Building the package's image; it is kept for the next time." in say.said("runnel")
    finally:
        forget_images(other)
