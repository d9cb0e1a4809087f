"""Unpacking an archive that may have been made to harm: checked while it streams, unpacked whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from runnel.common.errors import BadPackage, Conflict, HostileArchive, NotFound, StorageFull
from runnel.compute_package.archives import Link, Member, Plain, Room, open_members
from runnel.compute_package.manifest import FEDN_MANIFEST, RUNNEL_MANIFEST
from runnel.compute_package.members import link_fault, name_fault

_COPY_BYTES = 256 * 1024
# Folders that archivers of one operating system add and that never hold the package.
_FOREIGN = frozenset({"__MACOSX"})


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackLimits:
    """What an archive may grow to.

    Attributes:
        max_members: files, folders and links together, folders that are only implied by a name included.
        max_total_bytes: unpacked size of all files, tar headers included; the archive file itself is held to it too.
        max_ratio: unpacked size divided by the size of the archive, once ``ratio_from_bytes`` are unpacked.
        ratio_from_bytes: below this an archive may be as dense as it likes.
    """

    max_members: int = 20_000
    max_total_bytes: int = 2 * 1024**3
    max_ratio: float = 200.0
    ratio_from_bytes: int = 64 * 1024**2


DEFAULT_LIMITS = UnpackLimits()


def unpack(archive: Path, dest: Path, limits: UnpackLimits = DEFAULT_LIMITS) -> Path:
    """Unpack ``archive`` into the new folder ``dest`` and return the root of the package in it.

    tar (plain, gzip, bzip2) and zip (stored, deflated) are told apart by their content. The root is the folder that is
    nearest to the top and has ``runnel.yaml``, ``fedn.yaml`` or ``train.py``; a manifest goes before a script, so both
    ``train.py`` and the older ``client/train.py`` work. Everything is written to a folder beside ``dest`` that takes
    its name when it is whole; whatever goes wrong, ``dest`` does not come to exist. Permissions are 0755 or
    0644 less the umask: nothing is setuid.

    Args:
        archive: the file.
        dest: absent, or an empty folder; its parent exists or is made.
        limits: what is too much.

    Raises:
        NotFound: there is no such file.
        HostileArchive: a member has an absolute path, ``..``, a backslash, a drive letter or NUL in its name, is a link
            out of the package, a device or a pipe, or appears twice; or there are too many, or they are too large.
            The field ``member`` names it.
        BadPackage: the file is no archive, is damaged, or holds no package.
        Conflict: ``dest`` is there already.
        StorageFull: no room.
    """
    return dest / _extracted(archive, dest, limits, _find_root)


def extract(archive: Path, dest: Path, limits: UnpackLimits = DEFAULT_LIMITS) -> None:
    """Unpack an archive that is no package, as strictly: all of it is written within ``dest``, or nothing is.

    Arguments and errors are those of :func:`unpack`.
    """
    _extracted(archive, dest, limits, lambda folder: folder)


def _extracted(archive: Path, dest: Path, limits: UnpackLimits, look: Callable[[Path], Path]) -> Path:
    """Unpack into ``dest``, and return what ``look`` found before it took that name."""
    if not archive.is_file():
        raise NotFound(f"There is no archive {archive}.", path=str(archive))
    if dest.is_symlink() or (dest.exists() and not (dest.is_dir() and not any(dest.iterdir()))):
        raise Conflict(f"{dest} exists already.", hint="Unpack into a new folder.", path=str(dest))
    dest.parent.mkdir(parents=True, exist_ok=True)
    beside = dest.with_name(f".{dest.name}.{secrets.token_hex(4)}.part")
    try:
        beside.mkdir(mode=0o755)
        _Extraction(archive, beside, limits).run()
        found = look(beside)
        beside.rename(dest)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"The disk has no room to unpack {archive.name} in {dest.parent}.") from error
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise Conflict(f"{dest} came into being while {archive.name} was unpacked.", path=str(dest)) from error
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return found


class _Extraction:
    """One run over one archive: what was seen, what is left to spend."""

    def __init__(self, archive: Path, folder: Path, limits: UnpackLimits) -> None:
        self._archive = archive
        self._folder = folder
        self._limits = limits
        self._size = archive.stat().st_size
        self._spent = 0
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._links: dict[str, str] = {}
        self._current = ""

    def run(self) -> None:
        if self._size > self._limits.max_total_bytes:
            raise self._hostile("", f"is itself larger than {self._limits.max_total_bytes} bytes")
        room = Room(spend=self._spend, max_members=self._limits.max_members)
        with closing(open_members(self._archive, room)) as members:
            for member in members:
                self._current = member.name
                self._take(member)
        # Links come last: while files are written there is none that a name could lead through.
        for name, target in self._links.items():
            (self._folder / name).symlink_to(target)
        top = os.path.realpath(self._folder)
        for name, target in self._links.items():
            if not Path(os.path.realpath(self._folder / name)).is_relative_to(top):
                raise self._hostile(name, f"is a link out of the package, to {target!a}")

    def _take(self, member: Member) -> None:
        name = self._checked_name(member.name)
        if not name:
            return
        self._add_parents(name)
        if member.content is Plain.FOLDER:
            self._add_folder(name)
            return
        if name in self._files or name in self._links or name in self._folders:
            raise self._hostile(name, "appears twice")
        if isinstance(member.content, Link):
            self._take_link(name, member.content)
        elif isinstance(member.content, str):
            raise self._hostile(name, member.content)
        else:
            self._files.add(name)
            self._write(name, member.content, executable=member.executable)
        self._check_count()

    def _take_link(self, name: str, link: Link) -> None:
        if link.hard:
            source = self._checked_name(link.target)
            if source not in self._files:
                raise self._hostile(name, f"is a link to {link.target!a}, which is no earlier file of the archive")
            self._files.add(name)
            path = self._folder / source
            executable = bool(path.stat().st_mode & 0o100)
            with path.open("rb") as file:
                self._write(name, self._paid(file.read), executable=executable)
            return
        fault = link_fault(name, link.target)
        if fault:
            raise self._hostile(name, f"{fault}; it points to {link.target!a}")
        self._links[name] = link.target

    def _checked_name(self, name: str) -> str:
        """Return ``name`` without ``.`` and doubled slashes; empty for the top folder."""
        if name in (".", "./"):
            return ""
        fault = name_fault(name)
        if fault:
            raise self._hostile(name, fault)
        return "/".join(part for part in name.split("/") if part not in ("", "."))

    def _add_parents(self, name: str) -> None:
        parts = name.split("/")
        for end in range(1, len(parts)):
            self._add_folder("/".join(parts[:end]))

    def _add_folder(self, name: str) -> None:
        if name in self._folders:
            return
        if name in self._files or name in self._links:
            raise self._hostile(name, "is a folder and something else as well")
        self._folders.add(name)
        self._check_count()
        (self._folder / name).mkdir(mode=0o755)

    def _check_count(self) -> None:
        if len(self._files) + len(self._folders) + len(self._links) > self._limits.max_members:
            raise self._hostile(self._current, f"is one too many: at most {self._limits.max_members} are taken")

    def _write(self, name: str, read: Callable[[int], bytes], *, executable: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._folder / name, flags, 0o755 if executable else 0o644)
        except FileExistsError as error:
            # The file system knows one name for two, such as Train.py and train.py.
            raise self._hostile(name, "appears twice") from error
        with open(descriptor, "wb") as file:  # noqa: PTH123 (a descriptor, not a path)
            while block := read(_COPY_BYTES):
                file.write(block)

    def _paid(self, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
        def paid(size: int) -> bytes:
            block = read(size)
            self._spend(len(block))
            return block

        return paid

    def _spend(self, size: int) -> None:
        """Account for ``size`` bytes that came out of the archive, before anything is done with them."""
        self._spent += size
        limits = self._limits
        if self._spent > limits.max_total_bytes:
            raise self._hostile(self._current, f"brings the unpacked size above {limits.max_total_bytes} bytes")
        if self._spent > limits.ratio_from_bytes and self._spent > limits.max_ratio * max(self._size, 1):
            raise self._hostile(
                self._current, f"unpacks to more than {limits.max_ratio:g} times the size of the archive"
            )

    def _hostile(self, member: str, what: str) -> HostileArchive:
        shown = ascii(member if len(member) <= 200 else member[:200] + "…")[1:-1]
        subject = f"its member {shown}" if member else "it"
        return HostileArchive(
            f"The archive {self._archive.name} is refused: {subject} {what}.",
            hint="Nothing of it was kept. Pack the folder with: runnel package build FOLDER.",
            member=shown,
            archive=self._archive.name,
        )


def _find_root(top: Path) -> Path:
    """Return the package's folder relative to ``top``: breadth first, by name within a level."""
    level = [top]
    while level:
        for wanted in ((RUNNEL_MANIFEST, FEDN_MANIFEST), ("train.py",)):
            for folder in level:
                if any((folder / name).is_file() for name in wanted):
                    return folder.relative_to(top)
        level = [
            child
            for folder in level
            for child in sorted(folder.iterdir())
            if child.is_dir() and not child.is_symlink() and child.name not in _FOREIGN
        ]
    raise BadPackage(
        f"The archive holds no package: no folder in it has train.py, {RUNNEL_MANIFEST} or {FEDN_MANIFEST}.",
        hint="Pack a folder that has train.py: runnel package build FOLDER.",
    )
