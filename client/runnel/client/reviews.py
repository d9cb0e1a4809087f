"""Packages that wait for a person of the site, and what was decided: small files in the client's state folder.

The client writes who asks, the commands of people write what they decided, each to files of its own; all are replaced
whole, so both may work at the same time and neither needs the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from runnel.client.domain.policy import Review
from runnel.common.blobs import is_sha256
from runnel.common.disk import read_json, write_json
from runnel.common.errors import Conflict, CorruptData, NotFound

_FOLDER = "review"
_ASKING_KEPT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A package that somebody asked this site to run.

    ``archive``: its file, relative to the state folder. ``signers``: ids of the keys whose signature verified.
    ``asking``: who asked, as ``organisation/session``, the newest last. ``reason``: why it does not run yet.
    """

    digest: str
    name: str
    version: str
    archive: str
    signers: tuple[str, ...]
    asking: tuple[str, ...]
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A digest, with the package's name and archive if they are known."""

    digest: str
    name: str = ""
    archive: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What the site's people said about a digest, and the package's name and archive if it was known then."""

    digest: str
    review: Review
    at: datetime
    by: str
    reason: str = ""
    name: str = ""
    archive: str = ""


class Reviews:
    """Pending packages and decisions. All methods block.

    Args:
        state: folder of the client; what is kept here is in ``review`` below, which is made when needed.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._pending = state / _FOLDER / "pending"
        self._decided = state / _FOLDER / "decided"

    def relative(self, archive: Path) -> str:
        """Return the path of an archive in the state folder, as it is kept here."""
        return archive.relative_to(self._state).as_posix()

    def archive(self, of: Pending | Decided) -> Path | None:
        """Return the archive of a package, if it is still here."""
        path = self._state / of.archive
        return path if of.archive and path.is_file() else None

    # ---- the client's side

    def ask(self, pending: Pending) -> bool:
        """Keep that a package waits; return whether that is news. Who asked before stays named."""
        known = self._read_pending(self._pending / f"{pending.digest}.json")
        asking = dict.fromkeys((*(known.asking if known else ()), *pending.asking))
        wanted = dataclasses.replace(
            pending,
            asking=tuple(asking)[-_ASKING_KEPT:],
            since=known.since if known else pending.since,
        )
        if wanted == known:
            return False
        self._pending.mkdir(parents=True, exist_ok=True)
        document = dataclasses.asdict(wanted) | {"since": wanted.since.isoformat()}
        write_json(self._pending / f"{pending.digest}.json", document)
        return known is None

    def settled(self, digest: str) -> None:
        """Forget that a package waits."""
        (self._pending / f"{digest}.json").unlink(missing_ok=True)

    def review(self, digest: str) -> Review | None:
        """Return what was decided about a digest.

        Raises:
            CorruptData: the file of the decision is not readable as one.
        """
        found = self._read_decided(self._decided / f"{digest}.json")
        return None if found is None else found.review

    # ---- the people's side

    def pending(self) -> list[Pending]:
        """Return what waits and is not decided, the oldest first."""
        found = [self._read_pending(path) for path in _files(self._pending)]
        waiting = [each for each in found if each is not None and self.review(each.digest) is None]
        return sorted(waiting, key=lambda each: each.since)

    def decided(self) -> list[Decided]:
        """Return all decisions, the oldest first."""
        found = [self._read_decided(path) for path in _files(self._decided)]
        return sorted((each for each in found if each is not None), key=lambda each: each.at)

    def find(self, digest: str) -> Pending:
        """Return the package that waits or waited whose digest starts with ``digest``.

        Raises:
            NotFound: there is none.
            Conflict: there are several.
        """
        found = [path for path in _files(self._pending) if path.stem.startswith(digest)] if digest else []
        if len(found) > 1:
            raise Conflict(f"More than one package starts with {digest!r}.", hint="Give more of its digits.")
        pending = self._read_pending(found[0]) if found else None
        if pending is None:
            raise NotFound(f"No package {digest!r} waits here.", hint="`runnel client review` lists those that do.")
        return pending

    def named(self, digest: str) -> Named:
        """Return which package is meant: one that waits or waited, or was decided, or any by its whole digest.

        Raises:
            NotFound, Conflict: as :meth:`find`.
        """
        try:
            pending = self.find(digest)
            return Named(digest=pending.digest, name=pending.name, archive=pending.archive)
        except NotFound:
            known = [each for each in self.decided() if digest and each.digest.startswith(digest)]
            if len(known) == 1:
                return Named(digest=known[0].digest, name=known[0].name, archive=known[0].archive)
            if not is_sha256(digest):
                raise
            return Named(digest=digest)

    def decide(self, package: Named, review: Review, *, by: str, at: datetime, reason: str = "") -> Decided:
        """Approve or refuse a package, in place of an earlier decision."""
        decided = Decided(
            digest=package.digest,
            review=review,
            at=at,
            by=by,
            reason=reason,
            name=package.name,
            archive=package.archive,
        )
        self._decided.mkdir(parents=True, exist_ok=True)
        document = dataclasses.asdict(decided) | {"review": review.value, "at": at.isoformat()}
        write_json(self._decided / f"{decided.digest}.json", document)
        return decided

    def approved_before(self, pending: Pending) -> Decided | None:
        """Return the newest approval of another package of the same name."""
        same = [
            each
            for each in self.decided()
            if each.review is Review.APPROVED and each.name == pending.name != "" and each.digest != pending.digest
        ]
        return same[-1] if same else None

    def _read_pending(self, path: Path) -> Pending | None:
        told = _read(path)
        if told is None:
            return None
        try:
            lists = {name: tuple(map(str, told[name])) for name in ("signers", "asking")}
            return Pending(**{**told, **lists, "since": datetime.fromisoformat(told["since"])})
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(path) from error

    def _read_decided(self, path: Path) -> Decided | None:
        told = _read(path)
        if told is None:
            return None
        try:
            return Decided(
                **{**told, "review": Review(told["review"]), "at": datetime.fromisoformat(told["at"])},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(path) from error


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.glob("[0-9a-f]*.json")))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        told = read_json(path)
    except NotFound:
        return None
    if not isinstance(told, dict):
        raise _unreadable(path)
    return told


def _unreadable(path: Path) -> CorruptData:
    return CorruptData(
        f"{path} is not what this client writes there.", hint="Remove it, and decide again.", path=str(path)
    )
