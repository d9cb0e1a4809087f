"""What packages of FEDn find around them that others don't: variables, ``../data``, and where their seed model goes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runnel.compute_package import Manifest, ManifestKind

_SEEDS = ("../seed.npz", "seed.npz")


def fedn_variables(manifest: Manifest, env: Mapping[str, str]) -> dict[str, str]:
    """Return ``env`` with what packages of FEDn read besides, if this is one; what the site set stays as it is.

    ``FEDN_DATA_PATH`` is the site's default database, ``HOSTNAME`` the client's name, by which packages tell sites
    apart.
    """
    if not manifest.speaks_fedn:
        return dict(env)
    more = {"FEDN_DATA_PATH": env.get("RUNNEL_DATA"), "HOSTNAME": env.get("RUNNEL_CLIENT_NAME")}
    return {name: value for name, value in more.items() if value} | dict(env)


def lay_data_beside(manifest: Manifest, root: Path, env: Mapping[str, str]) -> None:
    """Make ``../data`` of a package of FEDn the site's default database, as in the folder where FEDn's clients start.

    A database that is a folder is ``../data`` itself, a file is in it under its own name. What the package's archive
    has there stays. Blocks.

    Args:
        manifest: of the package.
        root: the folder in which it runs.
        env: what its entry points see.
    """
    if not manifest.speaks_fedn:
        return
    beside, data = root.parent / "data", env.get("RUNNEL_DATA", "")
    where = Path(data) if data and "://" not in data else None
    if where is None or where.is_dir():
        _link(beside, where)
    elif where.exists():
        if _is_ours(beside):
            beside.unlink()
        beside.mkdir(exist_ok=True)
        _link(beside / where.name, where)


def _link(link: Path, target: Path | None) -> None:
    if os.path.lexists(link) and not _is_ours(link):
        return
    if target is None:
        link.unlink(missing_ok=True)
    elif not link.is_symlink() or link.readlink() != target:
        # By one rename, for another run may be looking at it.
        new = link.with_name(f".{link.name}-{secrets.token_hex(4)}")
        new.symlink_to(target)
        new.replace(link)


def _is_ours(link: Path) -> bool:
    """Whether it was laid here: no archive may bring a link to an absolute path."""
    return link.is_symlink() and link.readlink().is_absolute()


@dataclass(frozen=True, slots=True)
class SeedPlaces:
    """Where ``build`` of a package of FEDn leaves the seed, for it is told no path, and what was there before."""

    before: Mapping[Path, tuple[int, int] | None]

    @classmethod
    def of(cls, root: Path) -> SeedPlaces:
        """Look at the places beside and in the package's folder ``root``. Blocks."""
        paths = (Path(os.path.normpath(root / place)) for place in _SEEDS)
        return cls({path: _stamp(path) for path in paths})

    def written(self, default: Path) -> Path:
        """Return the first that was written since, ``default`` if none was. Blocks."""
        return next((path for path, stamp in self.before.items() if _stamp(path) not in (None, stamp)), default)


def is_told_no_seed(manifest: Manifest) -> bool:
    """Whether ``build`` is called without the path to write to, as FEDn calls it."""
    return manifest.kind is ManifestKind.FEDN


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size
