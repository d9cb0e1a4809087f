"""Passwords of registries, as ``docker login`` keeps them: in Docker's ``config.json``, or with credential helpers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from runnel.client.domain.task_policy import registry_of
from runnel.common.disk import read_json
from runnel.common.errors import BadSettings, CorruptData, EnvironmentFailed, NotFound

_KEYS = frozenset({"username", "password", "identitytoken"})

log = structlog.get_logger()


class RegistryPasswords:
    """Looks passwords up each time anew, as they expire and are renewed beside a running client.

    Args:
        config: a file like Docker's ``config.json``; None: that of the folder ``DOCKER_CONFIG``, or of ``~/.docker``,
            if there is one.
        environ: the client's variables, which the credential helpers get too.
    """

    def __init__(self, config: Path | None, environ: Mapping[str, str]) -> None:
        self._named = config
        self._environ = environ

    def require(self) -> None:
        """Make sure that a file which was named can be used. Blocks.

        Raises:
            BadSettings: it is not there, or is no such file.
        """
        if self._named is None:
            return
        try:
            _auths(self._named, self._environ)
        except _Unreadable as error:
            raise BadSettings(
                f"{self._named} can't be read as Docker's config.json: {error}",
                hint="Correct --docker-config; `docker login` writes such a file.",
            ) from error

    def of(self, image: str) -> Mapping[str, str] | None:
        """Return what an engine is to show to the registry of ``image``; None: nothing is known for it. Blocks.

        Raises:
            EnvironmentFailed: the file, or a credential helper, does not work. Why is in the log of the client only.
        """
        registry, config = registry_of(image), self._file()
        if config is None:
            return None
        try:
            found = _looked_up(config, self._environ, registry)
        except _Unreadable as error:
            log.error("passwords of a registry can't be read", registry=registry, config=str(config), error=str(error))
            raise EnvironmentFailed(
                f"The passwords that this site keeps for registries can't be read, so {registry} was not asked.",
                hint="The log of the client says why.",
            ) from None
        shown = {key.lower(): value for key, value in (found or {}).items() if key.lower() in _KEYS and value}
        return shown or None

    def _file(self) -> Path | None:
        if self._named is not None:
            return self._named
        folder = self._environ.get("DOCKER_CONFIG") or ""
        home = self._environ.get("HOME") or ""
        if not folder and not home:
            return None
        path = (Path(folder) if folder else Path(home) / ".docker") / "config.json"
        return path if path.is_file() else None


class _Unreadable(Exception):
    """Why in a sentence."""


def _auths(config: Path, environ: Mapping[str, str]) -> Any:
    # Slow to import, and most clients never need it.
    from docker.auth import AuthConfig
    from docker.errors import DockerException

    try:
        found = read_json(config)
        if not isinstance(found, dict):
            raise _Unreadable("It is no JSON object.")
        sections = {key: found[key] for key in ("auths", "credsStore", "credHelpers") if found.get(key)}
        return AuthConfig.load_config(None, sections, dict(environ)) if sections else AuthConfig({}, None)
    except (NotFound, CorruptData) as error:
        raise _Unreadable(error.message) from error
    except (DockerException, ValueError, TypeError, AttributeError, OSError) as error:
        # The library takes the file apart as it comes.
        raise _Unreadable(f"{type(error).__name__}: {error}.") from error


def _looked_up(config: Path, environ: Mapping[str, str], registry: str) -> Mapping[str, Any] | None:
    from docker.errors import DockerException

    auths = _auths(config, environ)
    helper = auths.get_credential_store(registry)
    if helper is not None and shutil.which(f"docker-credential-{helper}") is None:
        raise _Unreadable(f"There is no program docker-credential-{helper}.")
    try:
        found: Mapping[str, Any] | None = auths.resolve_authconfig(registry)
    except (DockerException, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        # A helper that fails, or that answers something else.
        raise _Unreadable(f"{type(error).__name__}: {error}.") from error
    return found
