"""What a compute package is, for people: digest, manifest and files."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from runnel.common.errors import NotFound
from runnel.compute_package.manifest import Manifest, read_manifest
from runnel.compute_package.pack import PackageFile, pack
from runnel.compute_package.unpack import DEFAULT_LIMITS, UnpackLimits, unpack

_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar", ".zip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A package from outside.

    Attributes:
        digest: SHA-256 of the archive, lower-case hex; of a folder, that of the archive that packing it would write.
        size_bytes: of that archive.
        manifest: what it says about itself; ``manifest.kind`` is what it was recognised as.
        files: relative to the package's root, by name.
    """

    digest: str
    size_bytes: int
    manifest: Manifest
    files: tuple[PackageFile, ...]

    @property
    def recognised(self) -> str:
        """Return ``runnel``, ``fedn`` or ``plain``."""
        return self.manifest.kind.value


def describe(path: Path, *, name: str | None = None, limits: UnpackLimits = DEFAULT_LIMITS) -> Description:
    """Describe the package ``path``, an archive or a folder, by packing or unpacking it in a temporary folder.

    Args:
        path: what to look at; it is not changed.
        name: what it is called if its manifest does not say; the archive's name without suffix by default.
        limits: for unpacking.

    Raises:
        NotFound: there is nothing at ``path``.
        BadPackage: it is no package, see :func:`pack` and :func:`unpack`; ``HostileArchive`` is one of them.
        StorageFull: no room in the temporary folder.
    """
    if not path.exists():
        raise NotFound(f"There is no package {path}.", path=str(path))
    with tempfile.TemporaryDirectory(prefix="runnel-package-", ignore_cleanup_errors=True) as temporary:
        work = Path(temporary)
        if path.is_dir():
            packed = pack(path, work / "package.tar.gz")
            return Description(
                digest=packed.ref.sha256,
                size_bytes=packed.ref.size_bytes,
                manifest=read_manifest(path, default_name=name),
                files=packed.files,
            )
        root = unpack(path, work / "package", limits)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Description(
            digest=digest,
            size_bytes=path.stat().st_size,
            manifest=read_manifest(root, default_name=name or _stem(path.name)),
            files=_files(root),
        )


def _files(root: Path) -> tuple[PackageFile, ...]:
    paths = sorted(path for path in root.rglob("*") if path.is_symlink() or path.is_file())
    return tuple(
        PackageFile(name=path.relative_to(root).as_posix(), size_bytes=0 if path.is_symlink() else path.stat().st_size)
        for path in paths
    )


def _stem(name: str) -> str:
    return next((name[: -len(suffix)] for suffix in _SUFFIXES if name.endswith(suffix)), name)
