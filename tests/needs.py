"""What a test needs of the machine: locally its absence skips the test, in CI it fails it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest


def in_ci(environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether this is a CI run, where every part is to be there (``CI=true``)."""
    return (os.environ if environ is None else environ).get("CI", "").lower() in ("true", "1")


def needs(condition: object, reason: str, *, environ: Mapping[str, str] | None = None) -> None:
    """Go on if ``condition`` is true; otherwise skip the calling test, or fail it in CI.

    Called in a test or a fixture: ``needs(shutil.which("docker"), "a Docker engine")``.
    """
    if condition:
        return
    if in_ci(environ):
        pytest.fail(f"needs {reason}, which CI has to provide", pytrace=False)
    pytest.skip(f"needs {reason}")
