"""What a site that comes from PyTaskManager has set already: the ``config.json`` of its client."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runnel.client.tasks.pytaskmanager import (
    DATABASE_URI,
    DOCKER_HOST,
    ENDPOINT_TOKEN,
    ENDPOINT_TYPE,
    ENDPOINT_URL,
    PROFILE,
)
from runnel.common.errors import BadSettings

log = structlog.get_logger()

_MAX_BYTES = 1 << 20
_OTHERS = 0o077


class _Config(BaseModel):
    # It has many keys more, which say where its master is and how often to ask: the network knows that otherwise.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    endpoint_url: str = Field("", alias="endpointUrl", max_length=4000)
    endpoint_type: str = Field("", alias="endpointType", max_length=200)
    endpoint_token: str = Field("", alias="endpointToken", max_length=100_000, repr=False)
    docker_host: str = Field("", alias="dockerHost", max_length=300)
    database_uri: str = Field("", alias="databaseUri", max_length=4000, repr=False)
    profile: Literal["", "files", "app"] = ""


def read_pytaskmanager(path: Path) -> Mapping[str, str]:
    """Return the settings of the contract ``pytaskmanager`` from a ``config.json``, such as its client has.

    Its keys ``endpointUrl``, ``endpointType``, ``endpointToken``, ``dockerHost``, ``databaseUri`` and ``profile``
    (``files`` or ``app``, for tasks that name none) are read; the others are no business of this client. No value is
    logged or told in an error.

    Raises:
        BadSettings: it can't be read, is no JSON object, or one of these keys is not what it should be.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
            others = bool(os.fstat(file.fileno()).st_mode & _OTHERS)
    except OSError as error:
        raise BadSettings(f"The file {path} of --pytaskmanager can't be read: {error.strerror}.") from error
    if len(data) > _MAX_BYTES:
        raise BadSettings(f"The file {path} of --pytaskmanager is larger than {_MAX_BYTES:,} bytes.")
    try:
        config = _Config.model_validate(json.loads(data))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"The file {path} of --pytaskmanager should be JSON but is not: {error}.") from error
    except ValidationError as error:
        # Without what came: it may be the token.
        keys = ", ".join(".".join(str(part) for part in each["loc"]) or "all of it" for each in error.errors())
        raise BadSettings(
            f"The file {path} of --pytaskmanager should be an object of texts, profile files or app; wrong: {keys}."
        ) from error
    settings = {
        ENDPOINT_URL: config.endpoint_url,
        ENDPOINT_TYPE: config.endpoint_type,
        ENDPOINT_TOKEN: config.endpoint_token,
        DOCKER_HOST: config.docker_host,
        DATABASE_URI: config.database_uri,
        PROFILE: config.profile,
    }
    if others and config.endpoint_token:
        log.warning("a file with a token can be read by others on this machine", file=str(path))
    return {name: value for name, value in settings.items() if value}
