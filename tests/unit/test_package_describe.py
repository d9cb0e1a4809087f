from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import yaml

from runnel.common.errors import BadPackage, Conflict, HostileArchive, NotFound
from runnel.compute_package import PackageFile, UnpackLimits, describe, pack, read_manifest, write_template

pytestmark = pytest.mark.unit


def fedn_archive(path: Path) -> Path:
    files = {"client/fedn.yaml": b"entry_points: {train: {command: python fit.py}}", "client/fit.py": b"pass"}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_an_archive_is_described_by_its_own_digest_and_the_files_of_the_package(tmp_path: Path) -> None:
    archive = fedn_archive(tmp_path / "cifar.tar.gz")
    description = describe(archive)
    assert description.digest == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert description.size_bytes == archive.stat().st_size
    assert description.recognised == "fedn"
    assert description.manifest.name == "cifar"
    assert description.files == (PackageFile(name="fedn.yaml", size_bytes=47), PackageFile(name="fit.py", size_bytes=4))
    assert describe(archive, name="other").manifest.name == "other"
    assert list(tmp_path.iterdir()) == [archive]


def test_a_folder_is_described_as_the_archive_that_it_would_be(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "train.py").write_text("pass")
    (tmp_path / "study" / "link.py").symlink_to("train.py")
    description = describe(tmp_path / "study")
    assert description.recognised == "plain"
    assert [path.name for path in tmp_path.iterdir()] == ["study"]
    packed = pack(tmp_path / "study", tmp_path / "study.tgz")
    assert (description.digest, description.size_bytes) == (packed.ref.sha256, packed.ref.size_bytes)
    assert describe(packed.path) == description


def test_what_can_not_be_described_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        describe(tmp_path / "nothing")
    with pytest.raises(BadPackage, match=r"train\.py"):
        describe(tmp_path)
    with pytest.raises(HostileArchive, match="at most 1"):
        describe(fedn_archive(tmp_path / "p.tgz"), limits=UnpackLimits(max_members=1))


def test_a_template_is_a_package(tmp_path: Path) -> None:
    files = write_template(tmp_path / "new" / "Heart study")
    assert {file.name for file in files} == {
        "train.py",
        "validate.py",
        "build.py",
        "runnel.yaml",
        "requirements.txt",
        "README.md",
        ".runnelignore",
    }
    description = describe(tmp_path / "new" / "Heart study")
    assert description.recognised == "runnel"
    assert description.manifest.name == "Heart-study"
    assert description.manifest.requirements == "requirements.txt"
    assert set(description.manifest.entry_points) == {"train", "validate", "build"}


@pytest.mark.parametrize("name", ["1.0", "on", "null", "2024-01-01", "_x"])
def test_a_template_may_be_called_anything(tmp_path: Path, name: str) -> None:
    write_template(tmp_path / name)
    assert read_manifest(tmp_path / name).name == name.strip("_")
    assert isinstance(yaml.safe_load((tmp_path / name / "runnel.yaml").read_text())["name"], str)


def test_a_template_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "validate.py").write_text("mine")
    with pytest.raises(Conflict, match=r"has validate\.py already; nothing was written"):
        write_template(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("validate.py", "mine")]
    with pytest.raises(Conflict, match="is a file"):
        write_template(tmp_path / "validate.py")
