"""What a package was recognised as, in words for its author."""

from __future__ import annotations

from pathlib import Path

from runnel.client.runtimes.installs import FednSource, Installs
from runnel.client.runtimes.requirements import read_requirements
from runnel.compute_package import Manifest, ManifestKind

_MODEL_FILES = {None: ".npz", "<f8": "plain float64", "<f4": "plain float32"}
_MANIFESTS = {ManifestKind.RUNNEL: "runnel.yaml", ManifestKind.FEDN: "fedn.yaml", ManifestKind.PLAIN: "none: by names"}


def recognise(manifest: Manifest, root: Path, *, top: Path, installs: Installs) -> dict[str, str]:
    """Return what was found, by what it is about. Blocks.

    Args:
        manifest: of the package in ``root``.
        root: where its entry points run.
        top: where its archive was unpacked.
        installs: what a site says about environments.

    Returns:
        ``kind`` (``runnel``, ``fedn`` or ``plain``), ``manifest``, ``layout``, ``environment``, ``model_files``, of
        packages with functions for the server ``server_functions``, and of packages that were made for FEDn ``helper``
        and ``fedn``: where that comes from.

    Raises:
        BadPackage: its requirements can't be read.
    """
    listing = manifest.requirements or manifest.python_env
    folder = root.relative_to(top).as_posix()
    found = {
        "kind": manifest.kind.value,
        "manifest": _MANIFESTS[manifest.kind],
        "layout": "files at the top" if folder == "." else f"files in {folder}/",
        "environment": listing or "the client's own Python",
        "model_files": _MODEL_FILES[manifest.fedn.raw_dtype],
    }
    if manifest.model_format is not None and not manifest.speaks_fedn:
        found["model_files"] = manifest.model_format.suffix
    if manifest.server is not None:
        found["server_functions"] = f"{', '.join(manifest.server.functions)} in {manifest.server.file}"
    if manifest.speaks_fedn:
        found["helper"] = ", ".join(manifest.fedn.helpers) or "none named"
        found["fedn"] = _fedn(manifest, root / listing if listing else None, root, installs)
    return found


def _fedn(manifest: Manifest, listing: Path | None, root: Path, installs: Installs) -> str:
    if listing is not None and not (wanted := read_requirements(listing, root=root)).empty:
        asked = wanted.fedn_shim
        if not asked:
            return "not required" if not manifest.fedn.imports else "imported but not required: add fedn"
    elif not manifest.fedn.imports:
        return "not used"
    elif installs.fedn is FednSource.REAL:
        return "whatever is installed beside the client"
    return "light stand-in" if installs.fedn is FednSource.SHIM else "FEDn itself"
