"""Compute packages at the client: fetched once, unpacked once, prepared once, by digest."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from runnel.client.runtimes import LineSink, PackageFiles, Prepared, Runtime
from runnel.common.blobs import BlobStore, in_thread
from runnel.common.protocol import BlobRef
from runnel.compute_package import read_manifest, unpack

Fetch = Callable[[BlobRef, Path], Awaitable[None]]


class PackageCache:
    """Prepared packages.

    Args:
        root: for archives (``archives``) and unpacked packages (``unpacked/<digest>/package``).
        fetch: brings a blob to a file and verifies it.
        runtime: prepares and runs packages.
    """

    def __init__(self, root: Path, fetch: Fetch, runtime: Runtime) -> None:
        self._archives = BlobStore(root / "archives")
        self._unpacked = root / "unpacked"
        self._unpacked.mkdir(parents=True, exist_ok=True)
        self._fetch = fetch
        self._runtime = runtime
        self._packages: dict[str, PackageFiles] = {}
        self._prepared: dict[str, Prepared] = {}
        self._turn = asyncio.Lock()

    def ready(self, ref: BlobRef) -> bool:
        """Whether :meth:`files` and :meth:`prepare` have nothing to do for this package."""
        return ref.sha256 in self._prepared

    def archive(self, ref: BlobRef) -> Path:
        """Return the archive of a package that :meth:`files` has returned."""
        return self._archives.path(ref)

    async def files(self, ref: BlobRef, say: LineSink) -> PackageFiles:
        """Return the package, verified and unpacked; nothing of it has run.

        Raises:
            BadPackage: it is no package, or its archive is hostile.
            Unreachable, DeadlineExceeded: it could not be fetched.
        """
        async with self._turn:
            package = self._packages.get(ref.sha256)
            if package is None:
                root = await self._files(ref, say)
                manifest = await in_thread(read_manifest, root)
                package = PackageFiles(digest=ref.sha256, root=root, manifest=manifest)
                self._packages[ref.sha256] = package
            return package

    async def prepare(self, package: PackageFiles, say: LineSink) -> Prepared:
        """Return the package, ready to run.

        Raises:
            EnvironmentFailed: what it requires could not be installed.
        """
        async with self._turn:
            prepared = self._prepared.get(package.digest)
            if prepared is None:
                prepared = await self._runtime.prepare(package, say)
                self._prepared[package.digest] = prepared
            return prepared

    async def _files(self, ref: BlobRef, say: LineSink) -> Path:
        if not self._archives.has(ref):
            say("runnel", f"fetching package {ref.sha256[:12]} ({ref.size_bytes:,} bytes)")
            target = self._archives.temporary()
            try:
                await self._fetch(ref, target)
                await in_thread(self._archives.adopt, target, ref)
            finally:
                await in_thread(target.unlink, missing_ok=True)
        # Unpacked anew at each start of the client: what an entry point of an earlier run left there is gone.
        folder = self._unpacked / ref.sha256
        # In threads that are waited for: work that is called off must not leave one behind that goes on unpacking.
        await in_thread(shutil.rmtree, folder, ignore_errors=True)
        # One level deeper: packages of FEDn look for their data beside the folder in which they run.
        return await in_thread(unpack, self._archives.path(ref), folder / "package")
