"""Compute packages of a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from runnel.common.protocol import PackageSignature
from runnel.sdk.connection import Connection
from runnel.sdk.paths import file_given, quoted
from runnel.sdk.transfers import Progress, download, push
from runnel.sdk.values import Package, read

if TYPE_CHECKING:
    from runnel.compute_package import PackageDifference


class Packages:
    """``network.packages``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def push(self, file: str | Path, *, progress: Progress | None = None) -> Package:
        """Store an archive; the same archive again gives the entry that is there.

        The signatures in the file ``ARCHIVE.sig`` beside it, which ``runnel package sign`` writes, go with it.

        Raises:
            NotFound: there is no such file.
            BadPackage: the network found it wanting; the message tells what.
            InvalidInput: ``ARCHIVE.sig`` is not of this archive.
        """
        path = Path(file)
        signatures = beside(path)
        package = read(Package, push(self._connection, "packages", path, progress=progress, filename=path.name))
        for signature in signatures:
            package = self.sign(package.digest, signature)
        return package

    def sign(self, digest: str, signature: PackageSignature) -> Package:
        """Say who vouches for a stored package.

        Raises:
            InvalidInput: the signature is not one of this package.
        """
        from runnel.compute_package import public_key_text

        body = {"public_key": public_key_text(signature.public_key), "signature": signature.signature.hex()}
        return read(Package, self._connection.post(f"packages/{quoted(digest)}/signatures", body))

    def list(self) -> Iterator[Package]:
        """Yield all packages, newest first."""
        return (read(Package, item) for item in self._connection.pages("packages"))

    def show(self, digest: str) -> Package:
        """Return one package, by its digest or a prefix of 4 characters or more."""
        return read(Package, self._connection.get(f"packages/{quoted(digest)}"))

    def retire(self, digest: str, *, undo: bool = False) -> Package:
        """Let no session be given a package any more, or again with ``undo``; those that have it go on."""
        return read(Package, self._connection.post(f"packages/{quoted(digest)}/retire", {"undo": undo}))

    def diff(self, before: str | Path, after: str | Path) -> PackageDifference:
        """Tell how a package differs from an earlier one; each is an archive or folder here, or a digest.

        Stored ones are downloaded and compared here: the network compares nothing.
        """
        from runnel.compute_package import differences

        with TemporaryDirectory(prefix="runnel-diff-", ignore_cleanup_errors=True) as folder:
            return differences(*(self._here(each, Path(folder) / side) for each, side in _sides(before, after)))

    def _here(self, package: str | Path, folder: Path) -> Path:
        """Return where a package lies; a stored one is put into ``folder``, under its name."""
        if Path(package).is_dir():
            return Path(package)
        found = file_given(package, what="package", make="")
        if found is not None:
            return found
        folder.mkdir()
        stored = self.show(str(package))
        target = folder / f"{stored.name or stored.digest[:12]}.tar.gz"
        self.get(stored.digest, target)
        return target

    def get(self, digest: str, target: str | Path, *, progress: Progress | None = None) -> Package:
        """Download the archive to the file ``target``, whole and verified or not at all."""
        package = self.show(digest)
        download(
            self._connection,
            f"packages/{package.digest}/content",
            Path(target),
            sha256=package.digest,
            size_bytes=package.size_bytes,
            progress=progress,
        )
        return package


def _sides(before: str | Path, after: str | Path) -> tuple[tuple[str | Path, str], tuple[str | Path, str]]:
    return (before, "before"), (after, "after")


def beside(archive: Path) -> tuple[PackageSignature, ...]:
    """Return the signatures in the file beside ``archive``, if there is one."""
    from runnel.common.blobs import digest_file
    from runnel.compute_package import read_signatures, signature_file

    if not (archive.exists() and signature_file(archive).exists()):
        return ()
    return read_signatures(archive, digest_file(archive).sha256)
