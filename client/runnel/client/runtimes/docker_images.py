"""Images of packages: named, found, built or fetched once, and known by their identity from then on."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import re
import secrets
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from runnel.client.runtimes.docker_build_context import BuildContext, dockerfile_context, requirements_context
from runnel.client.runtimes.docker_engine import Engine, engine_errors, inspected
from runnel.client.runtimes.docker_image_eviction import evict
from runnel.client.runtimes.docker_image_uses import ImageUses
from runnel.client.runtimes.installs import FednSource, Installs
from runnel.client.runtimes.log_capture import readable
from runnel.client.runtimes.requirements import read_requirements
from runnel.client.runtimes.runtime import LineSink, PackageFiles
from runnel.common.blobs import in_thread, storage_errors
from runnel.common.disk import write_bytes
from runnel.common.errors import BadPackage, EnvironmentFailed

REPOSITORY = "runnel-package"
LABEL_PACKAGE = "runnel.package"
BASE_ARGUMENT = "BASE_IMAGE"
PYTHON_ARGUMENT = "PYTHON_VERSION"
DEFAULT_BUILD_TIMEOUT_S = 1800.0
_TAIL_LINES = 30
_KEY_FILE = "image-names"
_USES_FOLDER = "images"
_TAKES_PYTHON = re.compile(rf"^\s*ARG\s+{PYTHON_ARGUMENT}\b", re.IGNORECASE | re.MULTILINE)
_TAKES_BASE = re.compile(rf"^\s*ARG\s+{BASE_ARGUMENT}\b", re.IGNORECASE | re.MULTILINE)
_SPOOLED_BYTES = 8 << 20

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that the engine has.

    Args:
        id: of it, which no other ever has.
        volumes: folders in which it would have volumes, which know no limit.
        size_bytes: of all its layers.
        made_for: of an image that was made for a package, the tag by which its use is remembered.
    """

    id: str
    volumes: tuple[str, ...] = ()
    size_bytes: int = 0
    made_for: str = ""


class Images:
    """Finds or makes the image that a package runs in.

    Args:
        engine: whose.
        state: folder of the client.
        base: the site's own image: packages that name none run in it, with their requirements, and those whose
            ``Dockerfile`` begins with ``ARG BASE_IMAGE`` are built on it. Empty: there is none.
        installs: what the site says about what packages require; if nothing may be installed, nothing is built or
            fetched either. Its limits of size and age are those of the images that are made for packages, too.
        build_timeout_s: seconds that a build or a transfer may take.
    """

    def __init__(
        self,
        engine: Engine,
        state: Path,
        *,
        base: str = "",
        installs: Installs | None = None,
        build_timeout_s: float = DEFAULT_BUILD_TIMEOUT_S,
    ) -> None:
        self._engine = engine
        self._state = state
        self._secret: bytes | None = None
        self._base = base
        self._installs = installs or Installs()
        self._timeout_s = build_timeout_s
        self._turn = asyncio.Lock()
        self._uses = ImageUses(state / _USES_FOLDER)
        self._gone: set[str] = set()

    def follow(self, installs: Installs) -> None:
        """Take over what the site says about what packages require from now on."""
        self._installs = installs

    async def prepare(self, package: PackageFiles, say: LineSink) -> Image:
        """Return the image of ``package``; what was made for it before is found again.

        Raises:
            EnvironmentFailed: it can't be had; the message has the engine's last lines.
            BadPackage: its requirements can't be read.
        """
        manifest = package.manifest
        # One after the other: builds are heavy, and two of one package would do the same work twice.
        async with self._turn:
            if manifest.image is not None:
                _require_foreign(manifest.image)
                return await self._named(manifest.image, "the package names it as its image", say)
            if manifest.dockerfile is not None:
                found = await self._from_dockerfile(package, manifest.dockerfile, say)
            else:
                found = await self._from_base(package, say)
            await self.used(found)
            await self._evict()
            return found

    async def used(self, image: Image) -> None:
        """Remember that an image is used now."""
        if image.made_for:
            await in_thread(self._uses.note, image.made_for, image.size_bytes)

    def is_gone(self, image: Image) -> bool:
        """Whether an image was removed here since it was prepared."""
        return image.id in self._gone

    async def _evict(self) -> None:
        """Remove images that were made for packages and not used for long, or are too much, and nothing else."""
        limits = self._installs
        if not limits.allowed:  # what is gone would not come back
            return
        self._gone |= set(
            await evict(
                self._engine,
                self._uses,
                most_bytes=limits.most_bytes,
                most_days=limits.most_days,
                name_of=lambda tag: f"{REPOSITORY}:{tag}",
            )
        )

    async def _from_dockerfile(self, package: PackageFiles, dockerfile: str, say: LineSink) -> Image:
        arguments = {}
        text = await in_thread((package.root / dockerfile).read_text, "utf-8", "replace")
        if package.manifest.python and _TAKES_PYTHON.search(text):
            arguments[PYTHON_ARGUMENT] = package.manifest.python
        if self._base and _TAKES_BASE.search(text):
            base = await self._named(self._base, "this site names it as its base", say)
            arguments[BASE_ARGUMENT] = self._base
            tag = await self._tag(package, "dockerfile", base.id)
        else:
            base, tag = None, await self._tag(package, "dockerfile")
        if (found := await self._find(tag)) is None:
            found = await self._build(package, tag, dockerfile_context(package.root, dockerfile), arguments, say)
        return _made(found, tag, base)

    async def _from_base(self, package: PackageFiles, say: LineSink) -> Image:
        if not self._base:
            raise EnvironmentFailed(
                f"The package {package.manifest.name!r} names no image, and this site has none for such packages.",
                hint="Give the package a Dockerfile or image: in its runnel.yaml, or the client --docker-image.",
                package=package.manifest.name,
            )
        base = await self._named(self._base, "this site names it for packages without one", say)
        listing = package.manifest.requirements or package.manifest.python_env
        shim = self._installs.fedn is FednSource.SHIM
        wanted = None
        if listing is not None:
            path = package.root / listing
            wanted = await in_thread(read_requirements, path, root=package.root, fedn_shim=shim)
        if wanted is not None and wanted.empty:
            wanted = None
        # Without requirements a package of FEDn expects what was installed with FEDn's client.
        bare_fedn = wanted is None and shim and package.manifest.fedn.imports
        apt = package.manifest.apt
        if wanted is None and not bare_fedn and not apt:
            return base
        context = await in_thread(
            requirements_context,
            package.root,
            wanted,
            base=self._base,
            find_links=self._installs.find_links,
            apt=apt,
            fedn=bare_fedn,
        )
        tag = await self._tag(package, "requirements", base.id, context.dockerfile_text)
        if (found := await self._find(tag)) is None:
            found = await self._build(package, tag, context, {}, say)
        return _made(found, tag, base)

    async def _tag(self, package: PackageFiles, *parts: str) -> str:
        """Return the name of what is made of exactly this package in this way.

        Another package must not guess it, for it could have its own image built on this one and read the files in it.
        """
        if self._secret is None:
            self._secret = await in_thread(_secret_of, self._state)
        text = "\n".join((package.digest, *parts)).encode()
        key = hmac.new(self._secret, text, hashlib.sha256).hexdigest()[:32]
        return f"{REPOSITORY}:{package.digest}-{key}"

    async def _named(self, name: str, why: str, say: LineSink) -> Image:
        """Return the image ``name``, fetched if the engine does not have it; the engine holds to a digest in it."""
        if (found := await self._find(name)) is not None:
            return found
        self._require_leave(f"the image {name} is not there: {why}")
        say("runnel", f"Fetching the image {name}: {why}.")
        try:
            with engine_errors(f"fetch the image {name}"):
                async with asyncio.timeout(self._timeout_s):
                    async for line in self._engine.pull(name):
                        _say_progress(line, say)
        except TimeoutError as error:
            raise EnvironmentFailed(f"The image {name} was not there within {self._timeout_s:g} s.") from error
        if (found := await self._find(name)) is None:
            raise EnvironmentFailed(f"The Docker engine fetched the image {name} and does not have it.")
        return found

    async def _find(self, name: str) -> Image | None:
        found = await inspected(self._engine, name)
        if found is None:
            return None
        volumes = (found.get("Config") or {}).get("Volumes") or {}
        return Image(id=str(found["Id"]), volumes=tuple(sorted(volumes)), size_bytes=int(found.get("Size") or 0))

    def _require_leave(self, why: str) -> None:
        if not self._installs.allowed:
            raise EnvironmentFailed(
                f"This site installs nothing for packages, and {why}.",
                hint="Build or fetch it at the site first, or ask the site to allow installs.",
                log_tail="",
            )

    async def _build(
        self, package: PackageFiles, tag: str, made_of: BuildContext, arguments: Mapping[str, str], say: LineSink
    ) -> Image:
        self._require_leave(f"the image {tag} is not there")
        say("runnel", "Building the package's image; it is kept for the next time.")
        tail: deque[str] = deque(maxlen=_TAIL_LINES)

        def told(_: str, text: str) -> None:
            tail.append(text)
            say("runnel", f"docker: {text}")

        with tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES) as context:
            with storage_errors(Path(tempfile.gettempdir())):
                await in_thread(made_of.write, context)
            try:
                with engine_errors("build the package's image"):
                    async with asyncio.timeout(self._timeout_s):
                        async for line in self._engine.docker.images.build(
                            fileobj=context,
                            encoding="identity",
                            tag=tag,
                            path_dockerfile=made_of.dockerfile,
                            buildargs=arguments,
                            labels={LABEL_PACKAGE: package.digest},
                            forcerm=True,
                            stream=True,
                        ):
                            _say_progress(line, told)
            except TimeoutError as error:
                raise _failed(f"it took more than {self._timeout_s:g} s", tail) from error
            except EnvironmentFailed as error:
                raise _failed(error.message, tail) from error
        found = await self._find(tag)
        if found is None:
            raise _failed("the engine built it and does not have it", tail)
        self._gone.discard(found.id)
        log.info("image built", image=tag, package=package.digest)
        return found


def _made(found: Image, tag: str, base: Image | None) -> Image:
    """Return an image that was made for a package; its size is what it has beside ``base``, which stays anyway."""
    own = max(0, found.size_bytes - (0 if base is None else base.size_bytes))
    return dataclasses.replace(found, size_bytes=own, made_for=tag.removeprefix(f"{REPOSITORY}:"))


def _failed(why: str, tail: deque[str]) -> EnvironmentFailed:
    lines = "\n".join(tail)
    return EnvironmentFailed(
        f"The image of the package could not be built: {why.rstrip('.')}.\n{lines}".rstrip(),
        hint="Check its Dockerfile or requirements, and that the engine reaches what they fetch.",
        log_tail=lines,
    )


def _require_foreign(image: str) -> None:
    if REPOSITORY in image:
        raise BadPackage(
            f"The package names {image} as its image; images of that name are made of packages, for these alone.",
            hint="Name another image, or give the package a Dockerfile.",
        )


def _secret_of(state: Path) -> bytes:
    """Return what makes the names of this client's images known to nobody else. Blocks."""
    path = state / _KEY_FILE
    try:
        return path.read_bytes()
    except FileNotFoundError:
        made = secrets.token_hex(16).encode()
        write_bytes(path, made, mode=0o600)
        return made


def _say_progress(line: Mapping[str, Any], say: LineSink) -> None:
    """Hand on what people want to read of one message; the moving bars of each layer are left out."""
    text = line.get("stream") or (line.get("status") if "progressDetail" not in line else "") or ""
    for each in str(text).splitlines():
        if shown := readable(each.encode()).rstrip():
            say("runnel", shown)
