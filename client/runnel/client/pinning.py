"""What a package requires, with exact versions: resolved at its author's desk, the same at every site."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from runnel.client.runtimes import EnvironmentCache, Guard, Installs, LineSink
from runnel.common.blobs import in_thread
from runnel.common.errors import BadPackage
from runnel.compute_package import pack, read_manifest, unpack


async def pin(
    package: Path,
    *,
    say: LineSink,
    hashes: bool = False,
    installs: Installs | None = None,
    environ: Mapping[str, str] | None = None,
) -> str:
    """Return the requirements of the package in the folder ``package``, pinned; nothing is written to it.

    They are resolved as a site would: from what is packed of the folder, for the Python that its ``runnel.yaml`` names,
    else for that of this process.

    Args:
        package: a package's folder.
        say: takes what uv prints.
        hashes: whether each line has the hashes of its files.
        installs: where wheels are found besides the package index.
        environ: variables, as a client has them for uv; by default those of this process.

    Raises:
        BadPackage: it is no package, or requires nothing.
        EnvironmentFailed: no versions fit together; the message has uv's words.
    """
    manifest = await in_thread(read_manifest, package)
    listing = manifest.requirements or manifest.python_env
    if listing is None:
        raise BadPackage(
            f"The package {manifest.name!r} requires nothing, so there is nothing to pin.",
            hint="Write what it requires to requirements.txt.",
            package=manifest.name,
        )
    guard = Guard()
    try:
        with tempfile.TemporaryDirectory(prefix="runnel-pin-") as folder:
            environments = EnvironmentCache(
                Path(folder), environ=os.environ if environ is None else environ, guard=guard, installs=installs
            )
            # What is included from elsewhere, or left out, is so at every site.
            packed = await in_thread(pack, package, Path(folder) / "package.tar.gz")
            root = await in_thread(unpack, packed.path, Path(folder) / "package")
            return await environments.pin(root / listing, say, root=root, hashes=hashes, python=manifest.python)
    finally:
        await guard.close()
