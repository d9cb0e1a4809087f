"""Where things are inside a container, and what the paths of the client are called there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

PACKAGE = PurePosixPath("/runnel/package")
RUN = PurePosixPath("/runnel/run")
# Where ``..`` of the package is the folder of the run, for a ``build`` that writes its seed there.
PACKAGE_IN_RUN = RUN / "package"
# Beside the package's folder: packages of FEDn look for ../data.
DATA = PurePosixPath("/runnel/data")
DATABASES = PurePosixPath("/runnel/databases")
_DATA_VARIABLE = "RUNNEL_DATA"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A file or folder of the client, ``outside``, that a run sees as ``inside``."""

    outside: Path
    inside: PurePosixPath
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All that one run sees of the client, and how its paths read inside.

    Args:
        package: the unpacked package.
        run: the folder of the run.
        data: the site's databases that are files or folders.
    """

    package: Place
    run: Place
    data: tuple[Place, ...] = field(default=())

    @property
    def places(self) -> tuple[Place, ...]:
        """Everything, the package first."""
        return (self.package, self.run, *self.data)

    def translate(self, text: str) -> str:
        """Return ``text`` as it reads inside if it is a path of one of the places, and as it is otherwise."""
        if text.startswith("/"):
            # The run's folder may lie in another; the longest is meant.
            for place in sorted(self.places, key=lambda one: len(str(one.outside)), reverse=True):
                outside = str(place.outside)
                if text == outside:
                    return str(place.inside)
                if text.startswith(f"{outside}/"):
                    return f"{place.inside}{text[len(outside) :]}"
        return text


def layout(
    *, package: Path, run: Path, env: Mapping[str, str], package_writable: bool = False, in_run: bool = False
) -> Layout:
    """Return what a run sees: ``env`` has the paths of its databases in the variables of the contract.

    ``in_run``: the package is in the folder of the run.

    A database that is an address, or a path where nothing is, stays what it is.
    """
    data = []
    for variable, where in env.items():
        if (variable == _DATA_VARIABLE or variable.startswith(f"{_DATA_VARIABLE}_")) and where.startswith("/"):
            path = Path(os.path.normpath(where))
            if path.exists():
                data.append(Place(outside=path, inside=_inside(variable, path)))
    return Layout(
        package=Place(
            outside=package.absolute(), inside=PACKAGE_IN_RUN if in_run else PACKAGE, writable=package_writable
        ),
        run=Place(outside=run.absolute(), inside=RUN, writable=True),
        data=tuple(data),
    )


def _inside(variable: str, path: Path) -> PurePosixPath:
    # What is left of a variable is letters, digits and underscores: no way up.
    name = variable.removeprefix(_DATA_VARIABLE).removeprefix("_").lower()
    folder = DATABASES / name if name else DATA
    # A file keeps its name, which often tells its format.
    return folder if path.is_dir() else folder / path.name
