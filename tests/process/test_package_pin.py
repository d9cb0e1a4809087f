"""Requirements are pinned at the author's desk, and what can't be is told there in uv's words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runnel.client.pinning import pin
from runnel.client.rehearsal import rehearse
from runnel.client.runtimes import Installs
from runnel.common.errors import BadPackage, EnvironmentFailed
from tests.doubles.client_packages import ADD_ONE, Listener, write_package
from tests.doubles.wheels import sha256, write_installed_wheel, write_wheel

pytestmark = pytest.mark.process

OFFLINE = dict(os.environ) | {"UV_NO_INDEX": "1"}


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    for version in ("1.0", "2.0"):
        write_wheel(tmp_path / "wheels", version)
    return tmp_path / "wheels"


async def pinned(package: Path, wheels: Path, *, hashes: bool = False) -> list[str]:
    installs = Installs(find_links=(str(wheels),))
    return (await pin(package, say=Listener(), hashes=hashes, installs=installs, environ=OFFLINE)).splitlines()


async def test_ranges_become_versions_and_hashes(tmp_path: Path, wheels: Path) -> None:
    package = tmp_path / "package"
    write_package(package, {"train.py": ADD_ONE, "requirements.txt": "greeting>=1,<3\n"})
    before = sorted(path.name for path in package.iterdir())
    assert await pinned(package, wheels) == ["greeting==2.0"]
    digest = sha256(next(wheels.glob("greeting-2.0*")))
    assert await pinned(package, wheels, hashes=True) == ["greeting==2.0 \\", f"    --hash=sha256:{digest}"]
    assert sorted(path.name for path in package.iterdir()) == before


async def test_fedn_stays_as_it_is_written(tmp_path: Path, wheels: Path) -> None:
    for project in ("numpy", "pyyaml"):
        write_installed_wheel(wheels, project)
    package = tmp_path / "package"
    write_package(
        package,
        {
            "fedn.yaml": "python_env: env.yaml\nentry_points: {train: {command: python train.py}}",
            "env.yaml": "dependencies: ['fedn>=0.9']",
            "train.py": ADD_ONE,
        },
    )
    lines = await pinned(package, wheels)
    assert [line.partition("==")[0] for line in lines] == ["numpy", "pyyaml", "fedn>=0.9"]


async def test_what_contradicts_itself_fails_in_uvs_words_before_anything_is_sent(tmp_path: Path, wheels: Path) -> None:
    package = tmp_path / "package"
    listing = f"--no-index\n-f {wheels}\ngreeting==1.0\ngreeting==2.0\n"
    write_package(package, {"train.py": ADD_ONE, "requirements.txt": listing})
    with pytest.raises(EnvironmentFailed, match=r"greeting==1\.0 and greeting==2\.0"):
        await pinned(package, wheels)
    seen = await rehearse(package, say=Listener(), environ=OFFLINE)
    assert [step.name for step in seen.steps if not step.ok] == ["environment"]
    assert "greeting==1.0 and greeting==2.0" in seen.steps[-1].detail


async def test_who_requires_nothing_has_nothing_to_pin(tmp_path: Path, wheels: Path) -> None:
    write_package(tmp_path / "package", {"train.py": ADD_ONE})
    with pytest.raises(BadPackage, match="nothing to pin"):
        await pinned(tmp_path / "package", wheels)
