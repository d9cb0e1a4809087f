"""Client settings as people write them on a command line."""

from __future__ import annotations

import json
from typing import Any

from runnel.common.errors import InvalidInput


def read_client_settings(text: str | None) -> dict[str, Any]:
    """Read the JSON object of ``--client-settings``; raises InvalidInput that tells what is wrong with it."""
    if text is None:
        return {}
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise InvalidInput(
            f"--client-settings: {text!r} is no JSON: {error}.", hint="Write an object, for example '{\"lr\": 0.1}'."
        ) from error
    if not isinstance(settings, dict):
        raise InvalidInput(
            f"--client-settings: {text!r} is no object.", hint="Write an object, for example '{\"lr\": 0.1}'."
        )
    return settings
