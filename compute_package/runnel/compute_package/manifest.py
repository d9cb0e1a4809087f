"""What a compute package says about itself: its entry points and the environment that they need."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

from runnel.common.errors import BadPackage, InvalidInput
from runnel.common.model_format import ModelFormat
from runnel.compute_package.contents import CONTENT_KEYS, read_contents
from runnel.compute_package.fedn_use import NO_USE, FednUse, find_fedn_use
from runnel.compute_package.needs import read_apt, read_python
from runnel.compute_package.server_code import ServerCode, find_server_code, read_server_code
from runnel.compute_package.strict_yaml import MAX_BYTES, kind_of, load_yaml

RUNNEL_MANIFEST = "runnel.yaml"
FEDN_MANIFEST = "fedn.yaml"
ENTRY_POINTS = ("train", "validate", "predict", "startup", "build")
"""The names that ``runnel.yaml`` may give a command; also the scripts that are found without a manifest."""

DOCKERFILE = "Dockerfile"
"""A package that has this file in its root, and no ``fedn.yaml``, runs in the image that it makes."""

_KEYS = ("name", "version", "entry_points", "requirements", "image", "model_format", "server")
_BUILD_KEYS = ("python", "apt", *CONTENT_KEYS)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
# A name as engines take it: registry and path, then a tag, a digest, or both.
_IMAGE = re.compile(
    r"[a-z0-9]+([._-]+[a-zA-Z0-9]+)*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)
_PYTHON = ("python", "python3")
# Of an image, or of an environment that FEDn would have made in the package's folder.
_PYTHON_PATH = re.compile(r"(/|\./|[\w.-]+/)\S*/python(3(\.\d+)?)?")
# A shell would make nothing else of a command of such characters.
_NO_SHELL_NEEDED = re.compile(r"[A-Za-z0-9_./:,@%+=-]+(\s+[A-Za-z0-9_./:,@%+=-]+)*")
_PROJECT = "pyproject.toml"


class ManifestKind(Enum):
    """Where a package's entry points are written down."""

    RUNNEL = "runnel"
    FEDN = "fedn"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a package is called, what it runs and what that needs.

    Attributes:
        name: of the package: at most 64 letters, digits, dots, dashes and underscores.
        version: as its author writes it; empty when nobody did.
        entry_points: command line by entry point name; ``train`` is always there.
        requirements: the pip requirements file of its environment, relative to the package's root. None: there is none.
        python_env: the environment file that a ``fedn.yaml`` names, relative to the package's root; None otherwise.
        kind: which file said so; ``PLAIN`` when the scripts were found by their names.
        requires_python: the ``requires-python`` of a ``pyproject.toml`` in the package's root; empty: any.
        python: the ``3.11`` or ``3.11.7`` that its ``runnel.yaml`` is for; empty: any.
        apt: packages of Debian, with versions if wanted, that are installed into the image that is made for it.
        fedn: what its scripts use of FEDn.
        model_format: of the models that its entry points are given and write; None: that of the session's seed.
        image: the container image that it runs in, a name or a name pinned by its digest. None: it names none.
        dockerfile: ``Dockerfile`` if the package has one that makes its image; never with ``image``. None otherwise.
        server: its functions for the reducer; None: it has none.

    With neither ``requirements`` nor ``python_env`` the package runs with the interpreter of the client itself; in a
    container with the image's.
    """

    name: str
    version: str
    entry_points: Mapping[str, str]
    requirements: str | None = None
    python_env: str | None = None
    kind: ManifestKind = ManifestKind.PLAIN
    requires_python: str = ""
    python: str = ""
    apt: tuple[str, ...] = ()
    fedn: FednUse = NO_USE
    model_format: ModelFormat | None = None
    image: str | None = None
    dockerfile: str | None = None
    server: ServerCode | None = None

    @property
    def needs_image(self) -> bool:
        """Whether it can run in a container only."""
        return self.image is not None or self.dockerfile is not None or bool(self.apt)

    @property
    def asked_python(self) -> tuple[str, str]:
        """The Python that it asks for, and the file that says so; both empty: any will do."""
        if self.python:
            return self.python, RUNNEL_MANIFEST
        return (self.requires_python, _PROJECT) if self.requires_python else ("", "")

    @property
    def speaks_fedn(self) -> bool:
        """Whether the package was made for FEDn: it has its manifest, or its scripts import it."""
        return self.kind is ManifestKind.FEDN or self.fedn.imports

    def command(self, entry_point: str) -> str:
        """Return the command line of ``entry_point`` as its author wrote it.

        Raises:
            BadPackage: the package has no such entry point.
        """
        try:
            return self.entry_points[entry_point]
        except KeyError:
            raise BadPackage(
                f"The package {self.name!r} has no entry point {entry_point!r}; it has {_listed(self.entry_points)}.",
                hint=f"Add {entry_point}.py or name a command under entry_points.{entry_point} in {RUNNEL_MANIFEST}.",
                package=self.name,
                entry_point=entry_point,
            ) from None

    def argv(self, entry_point: str, arguments: Sequence[str] = (), *, python: str) -> list[str]:
        """Return the argument vector that runs ``entry_point`` in the package's root.

        Args:
            entry_point: a key of ``entry_points``.
            arguments: appended to the command, each as one argument whatever it contains.
            python: interpreter of the package's environment; stands in for a leading ``python`` or ``python3``.

        A ``runnel.yaml`` command is split by the rules of a POSIX shell but none interprets it: no variables, no pipes.
        A ``fedn.yaml`` command is handed to ``bash -c``, for packages of that system rely on variables being expanded;
        one that no shell would change is run without. The path of a Python that is not there, such as that of the image
        for which a package was made, stands for ``python`` in it.

        Raises:
            BadPackage: the package has no such entry point.

        >>> plain = Manifest(name="p", version="", entry_points={"train": "python train.py --fast"})
        >>> plain.argv("train", ["in.npz", "out.npz"], python="/env/bin/python")
        ['/env/bin/python', 'train.py', '--fast', 'in.npz', 'out.npz']
        """
        command = self.command(entry_point)
        if self.kind is ManifestKind.FEDN:
            first, *rest = command.split(maxsplit=1)
            own = first in _PYTHON or (_PYTHON_PATH.fullmatch(first) is not None and not _is_there(first))
            if _NO_SHELL_NEEDED.fullmatch(command) and "=" not in first:
                return [python if own else first, *" ".join(rest).split(), *arguments]
            line = " ".join([shlex.quote(python), *rest]) if own else command
            return ["bash", "-c", f'{line} "$@"', "bash", *arguments]
        words = shlex.split(command)
        if words[0] in _PYTHON:
            words[0] = python
        return [*words, *arguments]


def read_manifest(root: Path, *, default_name: str | None = None) -> Manifest:
    """Read what the package in the folder ``root`` says about itself.

    ``runnel.yaml`` is looked for first; all of its keys are optional but ``entry_points.train``, which may be left out
    only if there is a ``train.py``::

        name: digits                    # default: the folder's name
        version: "1.0"                  # default: empty
        entry_points:                   # default: python NAME.py for each NAME.py that exists
          train: python train.py        # called with MODEL_IN MODEL_OUT
          validate: python validate.py  # called with MODEL_IN VALIDATION_JSON
          predict: python predict.py    # called with MODEL_IN PREDICTION_JSON
          startup: python startup.py    # once, when the environment is ready
          build: {command: python build.py --width 32}   # called with the SEED to write
        requirements: requirements.txt  # default: that file if it exists; null: the interpreter of the client
        model_format: safetensors       # or npz; default: the format of the session's seed
        image: python:3.12-slim         # it runs in a container of this image; name@sha256:… pins it
        python: "3.11"                  # the Python that runs it, whatever else there is; default: any
        apt: [libgomp1]                 # packages of Debian in the image that a site makes for it
        include: [../formulas.py]       # this and the next two: what is packed, see :class:`Contents`
        exclude: ["*.csv"]
        force_include: [units.csv]
        server: server.py               # default: that file if it has a class ServerFunctions; null: none

    A package with a ``Dockerfile`` in its root runs in a container of the image that it makes; it has no ``image``. Of
    what is in the image, requirements included, both leave the care to its author.

    Otherwise ``fedn.yaml`` is read as FEDn does: ``entry_points.NAME.command`` and ``python_env``, every other key is
    passed over, ``infer`` is an old name of ``predict``; a ``Dockerfile`` beside it is not the package's. Without
    either file, ``train.py``, ``validate.py``, ``predict.py``, ``startup.py`` and ``build.py`` are the entry points, as
    far as they exist.

    Args:
        root: the package's folder.
        default_name: what the package is called if its manifest does not say; the folder's name by default.

    Raises:
        BadPackage: no ``train``; a manifest that is not YAML, has an unknown key or a value of a wrong type, or names a
            file that does not exist. File and key are named.
    """
    name = _fitting_name(default_name or root.resolve().name)
    manifest = _read(root, name)
    if manifest.kind is not ManifestKind.RUNNEL:
        manifest = replace(manifest, server=find_server_code(root))
    return replace(manifest, requires_python=_requires_python(root), fedn=find_fedn_use(root))


def _read(root: Path, name: str) -> Manifest:
    if (root / RUNNEL_MANIFEST).is_file():
        return _read_runnel(root, name)
    if (root / FEDN_MANIFEST).is_file():
        return _read_fedn(root, name)
    found = _found_scripts(root)
    if "train" not in found:
        raise BadPackage(
            f"A package has a train.py, a {RUNNEL_MANIFEST} or a {FEDN_MANIFEST} in its root; "
            f"{name!r} holds {_listed(_shown_names(root))}.",
            hint="Add train.py, which is called as: python train.py MODEL_IN MODEL_OUT.",
            package=name,
        )
    return Manifest(
        name=name,
        version="",
        entry_points=found,
        requirements=_default_requirements(root),
        dockerfile=_found_dockerfile(root),
    )


def _is_there(program: str) -> bool:
    return program.startswith("/") and Path(program).exists()


def _requires_python(root: Path) -> str:
    path = root / _PROJECT
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            document = tomllib.loads(file.read(MAX_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadPackage(f"{_PROJECT} can not be read as TOML: {error}.", file=_PROJECT) from error
    project = document.get("project")
    wanted = project.get("requires-python", "") if isinstance(project, dict) else ""
    return _text(_PROJECT, "project.requires-python", wanted)


def _read_runnel(root: Path, default_name: str) -> Manifest:
    document = load_yaml(root / RUNNEL_MANIFEST)
    for key in document:
        if key not in (known := (*_KEYS, *_BUILD_KEYS)):
            raise _bad(RUNNEL_MANIFEST, str(key), f"is no key of it; it may have {', '.join(known)}")
    read_contents(document)  # of no effect but where it is packed; what is wrong is told everywhere
    name = _text(RUNNEL_MANIFEST, "name", document.get("name", default_name))
    if not _NAME.fullmatch(name):
        raise _bad(RUNNEL_MANIFEST, "name", f"should be 1 to 64 of A-Z a-z 0-9 . _ - but is {_shown(name)}")
    version = _text(RUNNEL_MANIFEST, "version", document["version"]) if "version" in document else ""
    if version and not _VERSION.fullmatch(version):
        raise _bad(RUNNEL_MANIFEST, "version", f"should be 1 to 64 of A-Z a-z 0-9 . _ + - but is {_shown(version)}")
    if "entry_points" in document:
        entry_points = _commands(document["entry_points"])
        _check_scripts(root, entry_points)
    else:
        entry_points = _found_scripts(root)
    if "train" not in entry_points:
        raise _bad(RUNNEL_MANIFEST, "entry_points.train", "is missing", "Add it: train: python train.py")
    if "requirements" not in document:
        requirements = _default_requirements(root)
    elif document["requirements"] is None:
        requirements = None
    else:
        requirements = _inside(root, RUNNEL_MANIFEST, "requirements", document["requirements"])
    image = _image(document["image"]) if "image" in document else None
    dockerfile = _found_dockerfile(root)
    if image is not None and dockerfile is not None:
        raise _bad(RUNNEL_MANIFEST, "image", f"and a {DOCKERFILE} exclude each other", "Remove the one or the other.")
    apt = read_apt(document.get("apt"))
    if apt and (image or dockerfile):
        other = DOCKERFILE if dockerfile else "an image"
        raise _bad(RUNNEL_MANIFEST, "apt", f"is for packages without {other}", f"Install them in {other} itself.")
    return Manifest(
        name=name,
        version=version,
        python=read_python(document.get("python")),
        apt=apt,
        entry_points=entry_points,
        requirements=requirements,
        kind=ManifestKind.RUNNEL,
        image=image,
        dockerfile=dockerfile,
        model_format=_model_format(document.get("model_format")),
        server=_server(root, document),
    )


def _server(root: Path, document: Mapping[Any, Any]) -> ServerCode | None:
    if "server" not in document:
        return find_server_code(root)
    if document["server"] is None:
        return None
    return read_server_code(root, _inside(root, RUNNEL_MANIFEST, "server", document["server"]))


def _image(value: object) -> str:
    name = _text(RUNNEL_MANIFEST, "image", value)
    if len(name) > 512 or not _IMAGE.fullmatch(name):
        raise _bad(
            RUNNEL_MANIFEST, "image", f"should be a name like python:3.12-slim or name@sha256:… but is {_shown(name)}"
        )
    return name


def _model_format(value: object) -> ModelFormat | None:
    if value is None:
        return None
    text = _text(RUNNEL_MANIFEST, "model_format", value)
    try:
        return ModelFormat.parse(text, field="model_format")
    except InvalidInput as error:
        known = ", ".join(each.value for each in ModelFormat)
        raise _bad(RUNNEL_MANIFEST, "model_format", f"should be one of {known} but is {_shown(text)}") from error


def _commands(section: object) -> dict[str, str]:
    if not isinstance(section, dict):
        raise _bad(RUNNEL_MANIFEST, "entry_points", f"should map names to commands but is {kind_of(section)}")
    commands = {}
    for name, value in section.items():
        key = f"entry_points.{name}"
        if name not in ENTRY_POINTS:
            raise _bad(RUNNEL_MANIFEST, key, f"is no entry point; they are {', '.join(ENTRY_POINTS)}")
        if isinstance(value, dict):
            for inner in value:
                if inner != "command":
                    raise _bad(RUNNEL_MANIFEST, f"{key}.{inner}", "is no key of it; there is only command")
            key, value = f"{key}.command", value.get("command")
        commands[name] = _command(RUNNEL_MANIFEST, key, value)
        try:
            words = shlex.split(commands[name])
        except ValueError as error:
            raise _bad(RUNNEL_MANIFEST, key, f"is no command line ({error}): {_shown(commands[name])}") from error
        if not words or not words[0]:
            raise _bad(RUNNEL_MANIFEST, key, "is empty")
    return commands


def _check_scripts(root: Path, entry_points: Mapping[str, str]) -> None:
    """Fail at the author's desk, and not at every site, when ``python SCRIPT`` names a script that is not there."""
    for name, command in entry_points.items():
        words = shlex.split(command)
        if words[0] in _PYTHON and len(words) > 1 and not words[1].startswith("-"):
            _inside(root, RUNNEL_MANIFEST, f"entry_points.{name}", words[1])


def _read_fedn(root: Path, default_name: str) -> Manifest:
    document = load_yaml(root / FEDN_MANIFEST)
    section = document.get("entry_points")
    if not isinstance(section, dict):
        raise _bad(FEDN_MANIFEST, "entry_points", f"should map names to commands but is {kind_of(section)}")
    entry_points = {}
    for name, value in section.items():
        key = f"entry_points.{name}.command"
        if not isinstance(value, dict) or "command" not in value:
            raise _bad(FEDN_MANIFEST, key, "is missing")
        entry_points[str(name)] = _command(FEDN_MANIFEST, key, value["command"])
    if "infer" in entry_points:
        entry_points.setdefault("predict", entry_points["infer"])
    if "train" not in entry_points:
        raise _bad(FEDN_MANIFEST, "entry_points.train", "is missing")
    python_env = None
    if document.get("python_env") is not None:
        python_env = _inside(root, FEDN_MANIFEST, "python_env", document["python_env"])
    return Manifest(
        name=default_name,
        version="",
        entry_points=entry_points,
        requirements=None if python_env else _default_requirements(root),
        python_env=python_env,
        kind=ManifestKind.FEDN,
    )


def _bad(file: str, key: str, what: str, hint: str = "") -> BadPackage:
    key = key if len(key) <= 80 else key[:80] + "…"
    return BadPackage(f"{file}: {key} {what}.", hint=hint, file=file, key=key)


def _text(file: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _bad(file, key, f"should be text but is {kind_of(value)}", "Put it in quotation marks.")
    return value


def _command(file: str, key: str, value: object) -> str:
    command = _text(file, key, value)
    if not command.strip():
        raise _bad(file, key, "is empty")
    if any(ord(char) < 32 and char not in "\t\n" for char in command):
        raise _bad(file, key, "has control characters")
    return command


def _inside(root: Path, file: str, key: str, value: object) -> str:
    """Return ``value`` as the relative path of a file that is really within ``root``."""
    text = _text(file, key, value)
    path = PurePosixPath(text)
    if "\0" in text or path.is_absolute() or ".." in path.parts:
        raise _bad(file, key, f"should name a file of the package but is {_shown(text)}")
    target = root / path
    if not target.is_file():
        raise _bad(file, key, f"names {_shown(text)}, which the package does not have")
    if not target.resolve().is_relative_to(root.resolve()):
        raise _bad(file, key, f"names {_shown(text)}, which is a link out of the package")
    return str(path)


def _found_scripts(root: Path) -> dict[str, str]:
    return {name: f"python {name}.py" for name in ENTRY_POINTS if (root / f"{name}.py").is_file()}


def _default_requirements(root: Path) -> str | None:
    return "requirements.txt" if (root / "requirements.txt").is_file() else None


def _found_dockerfile(root: Path) -> str | None:
    return DOCKERFILE if (root / DOCKERFILE).is_file() else None


def _fitting_name(text: str) -> str:
    fitting = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64]
    return fitting or "package"


def _shown_names(root: Path) -> list[str]:
    names = sorted(ascii(path.name)[1:-1] for path in root.iterdir()) if root.is_dir() else []
    return names if len(names) <= 8 else [*names[:8], f"{len(names) - 8} more"]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "…")
