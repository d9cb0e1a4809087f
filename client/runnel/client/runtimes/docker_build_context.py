"""What an engine is sent to build an image of: the package's files and, where the package has none, a Dockerfile."""

from __future__ import annotations

import io
import os
import shlex
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote

from runnel.client.runtimes.requirements import Requirements
from runnel.compute_package import shim_digest, shim_source, write_shim_wheel

_FILES = PurePosixPath("/runnel/requirements")
_FEDN = PurePosixPath("/runnel/fedn")
_DOCKERFILE = ".runnel.Dockerfile"
_LISTING = ".runnel-requirements.txt"
_CONSTRAINTS = ".runnel-constraints.txt"
_FEDN_FOLDER = ".runnel-fedn"
_WHEELS = ".runnel-wheels-"
_INSTALLABLE = (".whl", ".tar.gz", ".zip")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildContext:
    """The files that a build sees.

    Args:
        dockerfile: name of the Dockerfile among them.
        trees: folders of the client by where they are in the context.
        extra: further files.
        wheels: folders of which only what pip installs, and nothing below, is there.
    """

    dockerfile: str
    trees: Mapping[str, Path]
    extra: Mapping[str, bytes] = field(default_factory=dict)
    wheels: Mapping[str, Path] = field(default_factory=dict)

    @property
    def dockerfile_text(self) -> str:
        """The Dockerfile, if it is not the package's own."""
        return self.extra.get(self.dockerfile, b"").decode()

    def write(self, target: IO[bytes]) -> None:
        """Write them as an archive: the same bytes for the same files, so that the engine knows its layers. Blocks."""
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for prefix, root in self.trees.items():
                for path in sorted(root.rglob("*")):
                    if "__pycache__" not in path.parts:
                        name = (PurePosixPath(prefix) / path.relative_to(root).as_posix()).as_posix()
                        archive.add(path, arcname=name, recursive=False, filter=_plain)
            for prefix, folder in self.wheels.items():
                for path in sorted(folder.iterdir()):
                    if path.name.endswith(_INSTALLABLE) and path.is_file():
                        archive.add(path.resolve(), arcname=f"{prefix}/{path.name}", filter=_plain)
            for name, content in sorted(self.extra.items()):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        target.seek(0)


def dockerfile_context(root: Path, dockerfile: str) -> BuildContext:
    """Return what the ``dockerfile`` of the package ``root`` is built of: the package."""
    return BuildContext(dockerfile=dockerfile, trees={".": root})


def requirements_context(
    root: Path,
    wanted: Requirements | None,
    *,
    base: str,
    find_links: Sequence[str] = (),
    apt: Sequence[str] = (),
    fedn: bool = False,
) -> BuildContext:
    """Return what makes an image of ``base`` with what a package requires, installed by the pip of ``base``. Blocks.

    Args:
        root: the package's folder, in which local requirements are.
        wanted: what is to be installed; None: nothing.
        base: the image.
        find_links: addresses of further wheels, or folders of this client, whose wheels the build is given.
        apt: packages of Debian, installed by the apt of ``base`` before anything else.
        fedn: whether FEDn packages get what they import, which needs no index, where nothing is ``wanted``.
    """
    first = f"FROM {base}\n" + (f"RUN {_apt_install(apt)}\n" if apt else "")
    if wanted is None:
        text = first
        trees: dict[str, Path] = {}
        if fedn:
            text += f"{_shim_label()}COPY {_FEDN_FOLDER} {_FEDN}\nENV PYTHONPATH={_FEDN}\n"
            trees = {_FEDN_FOLDER: shim_source()}
        return BuildContext(dockerfile=_DOCKERFILE, trees=trees, extra={_DOCKERFILE: text.encode()})
    folder = _FILES / os.path.relpath(wanted.folder, root)
    extra: dict[str, bytes] = {}
    shim = ""
    if wanted.fedn_shim:
        with tempfile.TemporaryDirectory() as temporary:
            wheel = write_shim_wheel(Path(temporary))
            extra[wheel.name] = wheel.read_bytes()
        shim = f"file://{quote(str(_FILES / wheel.name))}"
    extra[_LISTING] = wanted.written(folder=f"file://{quote(str(folder))}", shim=shim).encode()
    arguments = ["-r", str(_FILES / _LISTING)]
    if wanted.constraints:
        extra[_CONSTRAINTS] = "".join(f"{line}\n" for line in wanted.constraints).encode()
        arguments += ["-c", str(_FILES / _CONSTRAINTS)]
    if wanted.hashed:
        arguments.append("--require-hashes")
    wheels: dict[str, Path] = {}
    for number, place in enumerate(find_links):
        if "://" in place:
            arguments += ["--find-links", place]
        else:
            wheels[f"{_WHEELS}{number}"] = Path(place)
            arguments += ["--find-links", str(_FILES / f"{_WHEELS}{number}")]
    # The pip of a distribution refuses to touch the system's Python unless told; in an image that is the place.
    install = "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir"
    label = _shim_label() if wanted.fedn_shim else ""
    run = f"cd {shlex.quote(str(folder))} && {install} {shlex.join(arguments)}"
    text = f"{first}{label}COPY . {_FILES}\nRUN {run}\n"
    extra[_DOCKERFILE] = text.encode()
    return BuildContext(dockerfile=_DOCKERFILE, trees={".": root}, extra=extra, wheels=wheels)


def _apt_install(names: Sequence[str]) -> str:
    install = "DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends"
    return f"apt-get update && {install} {shlex.join(names)} && rm -rf /var/lib/apt/lists/*"


def _shim_label() -> str:
    """Return a line by which images that have another stand-in than this version's have another name."""
    return f"LABEL runnel.fedn={shim_digest()}\n"


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member
