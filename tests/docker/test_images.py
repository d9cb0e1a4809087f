"""Images of packages: made or found once, and a clear word when they can't be had."""

from __future__ import annotations

import hashlib
import secrets
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.client.entry_points import build
from runnel.client.rehearsal import rehearse
from runnel.client.runtimes import Installs, PackageFiles
from runnel.client.runtimes.docker_files import FileSharing
from runnel.common.errors import EnvironmentFailed
from runnel.compute_package import pack, read_manifest
from tests.docker_engine import base_image, docker, docker_runtime, engine_host, forget_images, inspect, with_base
from tests.doubles.client_packages import ADD_ONE, MEASURE, Listener, run_train, write_package

pytestmark = pytest.mark.docker


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


async def test_a_dockerfile_is_built_once_and_its_log_is_seen(tmp_path: Path, digest: str, say: Listener) -> None:
    files = {
        "Dockerfile": with_base(
            ["COPY extra.txt /opt/extra.txt", "RUN echo at work > /opt/made; cat /opt/made", "ENV GREETING=hello"]
        ),
        "extra.txt": "from the package",
        "train.py": """
            import os
            print(open("/opt/extra.txt").read(), open("/opt/made").read().strip(), os.environ["GREETING"])
            """,
    }
    made = package(tmp_path / "package", digest, files)
    for start in ("first", "second"):
        async with docker_runtime(tmp_path) as runtime:
            prepared = await runtime.prepare(made, say)
            await run_train(runtime, prepared, say)
        if start == "first":
            lines = say.said("runnel")
            assert lines[0] == "Building the package's image; it is kept for the next time."
            assert any(line.startswith("docker: Step ") for line in lines)
            assert "docker: at work" in lines
        else:
            assert say.said("runnel") == [], "nothing is prepared"
        assert say.said("stdout") == ["from the package at work hello"]
        say.lines.clear()
    assert inspect("image", prepared.image.id)["RepoTags"][0].startswith(f"runnel-package:{digest}")


async def test_a_build_that_fails_says_why_and_leaves_nothing(tmp_path: Path, digest: str, say: Listener) -> None:
    made = package(
        tmp_path / "package", digest, {"Dockerfile": with_base([f"RUN echo no such thing {digest}; exit 7"])}
    )
    async with docker_runtime(tmp_path) as runtime:
        with pytest.raises(EnvironmentFailed, match=r"(?s)could not be built:.*code: 7.*no such thing") as caught:
            await runtime.prepare(made, say)
    assert "no such thing" in caught.value.fields["log_tail"]
    assert digest not in docker("ps", "--all", "--no-trunc", "--format", "{{.Command}}").stdout


async def test_an_image_of_the_manifest_is_taken_by_name_or_digest(tmp_path: Path, digest: str, say: Listener) -> None:
    name = base_image()
    for image in (name, f"{name}@sha256:{'0' * 64}"):
        made = package(tmp_path / image.replace("/", "-"), digest, {"runnel.yaml": f"image: {image}"})
        async with docker_runtime(tmp_path) as runtime:
            if "@" not in image:
                prepared = await runtime.prepare(made, say)
                assert prepared.image.id == inspect("image", name)["Id"]
                await run_train(runtime, prepared, say)
                assert say.said("runnel") == []
            else:
                with pytest.raises(EnvironmentFailed, match=f"could not fetch the image {image}"):
                    await runtime.prepare(made, say)
                assert say.said("runnel")[0] == f"Fetching the image {image}: the package names it as its image."


async def test_a_package_that_names_none_needs_one_of_the_site(tmp_path: Path, digest: str, say: Listener) -> None:
    made = package(tmp_path / "package", digest, {})
    async with docker_runtime(tmp_path, base_image="") as runtime:
        with pytest.raises(EnvironmentFailed, match=r"names no image, and this site has none.*--docker-image"):
            await runtime.prepare(made, say)


async def test_requirements_become_a_layer_on_the_sites_image(tmp_path: Path, digest: str, say: Listener) -> None:
    root = tmp_path / "package"
    files = {
        "requirements.txt": "# its own\n-r more.txt\n",
        "more.txt": "./tiny-1.0-py3-none-any.whl\n",
        "train.py": "import tiny; print(tiny.WORD)",
    }
    write_package(root, {"train.py": "pass"})
    with zipfile.ZipFile(root / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "WORD = 'installed'")
        info = "tiny-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    made = package(root, digest, files)
    for start in ("first", "second"):
        async with docker_runtime(tmp_path) as runtime:
            prepared = await runtime.prepare(made, say)
            await run_train(runtime, prepared, say)
        assert say.said("stdout") == ["installed"]
        assert bool(say.said("runnel")) is (start == "first")
        say.lines.clear()


async def test_an_image_without_the_command_says_so(tmp_path: Path, digest: str, say: Listener) -> None:
    made = package(tmp_path / "package", digest, {"runnel.yaml": "entry_points: {train: Rscript train.R}"})
    async with docker_runtime(tmp_path) as runtime:
        prepared = await runtime.prepare(made, say)
        with pytest.raises(Exception, match="'Rscript', which is not installed in its image"):
            await run_train(runtime, prepared, say)


async def test_what_requires_fedn_gets_the_stand_in(tmp_path: Path, digest: str, say: Listener) -> None:
    script = """
        import os, sys
        from fedn.utils.helpers.helpers import get_helper
        print(get_helper("numpyhelper").__class__.__module__, sys.argv[1:])
        print(os.listdir("../data"), os.environ["FEDN_DATA_PATH"])
        """
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").touch()
    env = {name: str(tmp_path / "data") for name in ("RUNNEL_DATA", "FEDN_DATA_PATH")}
    manifest = "entry_points: {train: {command: python train.py}}"
    made = package(tmp_path / "bare", digest, {"train.py": script, "fedn.yaml": manifest})
    async with docker_runtime(tmp_path) as runtime:
        prepared = await runtime.prepare(made, say)
        await run_train(runtime, prepared, say, "in", "out", env=env)
    told, data = say.said("stdout")
    assert data == "['a.csv'] /runnel/data"
    assert told.startswith("fedn.utils.helpers")
    assert told.endswith("['in', 'out']")


@pytest.mark.parametrize("sharing", list(FileSharing))
async def test_fedns_build_leaves_its_seed_beside_the_package(
    tmp_path: Path, digest: str, say: Listener, sharing: FileSharing
) -> None:
    manifest = "entry_points: {train: {command: python train.py}, build: {command: python model.py}}"
    script = "import os, numpy as np; np.savez('../seed.npz', **{'0': np.arange(3.0)}); print(sorted(os.listdir('.')))"
    made = package(tmp_path / "fedn", digest, {"model.py": script, "fedn.yaml": manifest})
    (tmp_path / "work").mkdir()
    choices: dict[str, Any] = {"workdir": tmp_path / "work", "env": {}, "timeout_s": 60, "say": say}
    async with docker_runtime(tmp_path, sharing=sharing) as runtime:
        prepared = await runtime.prepare(made, say)
        seed = await build(runtime, prepared, seed=tmp_path / "seed.npz", **choices)
    assert np.load(seed)["0"].tolist() == [0, 1, 2]
    assert say.said("stdout") == ["['fedn.yaml', 'model.py', 'train.py']"]
    assert list((tmp_path / "work").iterdir()) == []


async def test_a_site_that_installs_nothing_builds_and_fetches_nothing(
    tmp_path: Path, digest: str, say: Listener
) -> None:
    made = package(tmp_path / "package", digest, {"Dockerfile": with_base(["RUN echo made"])})
    async with docker_runtime(tmp_path, installs=Installs(allowed=False)) as runtime:
        with pytest.raises(EnvironmentFailed, match="installs nothing for packages, and the image runnel-package"):
            await runtime.prepare(made, say)
        await runtime.prepare(package(tmp_path / "plain", digest, {}), say)
        assert say.lines == []
    async with docker_runtime(tmp_path) as runtime:
        await runtime.prepare(made, say)
    say.lines.clear()
    async with docker_runtime(tmp_path, installs=Installs(allowed=False)) as runtime:
        await runtime.prepare(made, say)
    assert say.lines == [], "what was built before runs"


async def test_a_package_is_tried_out_in_its_image(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    files = {
        "train.py": ADD_ONE,
        "validate.py": MEASURE,
        "build.py": "import sys, numpy as np; np.savez(sys.argv[1], w=np.ones(3))",
        "Dockerfile": with_base([f"RUN echo {secrets.token_hex(8)}"]),
    }
    write_package(folder, files)
    environ = {"DOCKER_HOST": engine_host(), "PATH": "/usr/bin:/bin"}
    try:
        found = await rehearse(folder, say=Listener(), environ=environ, docker_image=base_image())
        assert found.ok, found.steps
        [environment] = [step for step in found.steps if step.name == "environment"]
        assert environment.detail.startswith("runs with the image sha256:")
        refused = await rehearse(folder, say=Listener(), environ=environ, runtime="process")
        assert refused.steps[-1].name == "environment"
        assert "--runtime docker" in refused.steps[-1].hint
    finally:
        with tempfile.TemporaryDirectory() as place:
            forget_images(pack(folder, Path(place) / "p.tar.gz").ref.sha256)
    environ["DOCKER_HOST"] = "unix:///nowhere/docker.sock"
    lost = await rehearse(folder, say=Listener(), environ=environ)
    assert lost.steps[-1].detail.startswith("No Docker engine answers at unix:///nowhere/docker.sock")
