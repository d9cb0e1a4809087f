"""What a site says about the environments that are built for packages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GIB = 1 << 30
DEFAULT_MOST_BYTES = 20 * GIB
DEFAULT_MOST_DAYS = 60.0


class FednSource(StrEnum):
    """What a requirement of ``fedn`` gets: a light stand-in that has what packages import, or FEDn itself."""

    SHIM = "shim"
    REAL = "real"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installs:
    """What may be installed, from where, and how much of it is kept.

    Args:
        allowed: whether environments are built at all; otherwise only those run that are there.
        find_links: folders with wheels, or addresses of pages that link to some, besides the package index.
        fedn: what ``fedn`` in a package's requirements gets.
        most_bytes: of all environments together, above which those go that were not used for longest.
        most_days: after so many days without a run an environment goes.
    """

    allowed: bool = True
    find_links: tuple[str, ...] = ()
    fedn: FednSource = FednSource.SHIM
    most_bytes: int = DEFAULT_MOST_BYTES
    most_days: float = DEFAULT_MOST_DAYS
