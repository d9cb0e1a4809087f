"""A task as PyTaskManager describes it: an image, an input text and a run id, whose tasks share a folder at a site."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

from runnel.common.tasks.spec import Blob, Contract, TaskSpec, task_spec

RUN_ID_TAG = "pytaskmanager.runId"
"""Tag with the run id as it was given: the containers' ``RUN_ID``."""

_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def run_group(run_id: str) -> str:
    """Return the group of tasks with this run id: the id itself where it may name one, else the digest of it.

    >>> run_group("10"), run_group("../10")
    ('10', 'run-9d0c33c5861fc7b7d0e41020da999458')
    """
    if _GROUP.fullmatch(run_id):
        return run_id
    return f"run-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}"


def pytaskmanager_task(
    *, image: str, run_id: str, text: bytes | Blob, profile: str | None = None, source: str, name: str = ""
) -> TaskSpec:
    """Return what such a task is here; ``text``: the input, or the blob of a large one. ``source``: who says so.

    Raises:
        InvalidInput: one of these is not what a task may have.
    """
    payload: dict[str, Any] = (
        {"blob": text.model_dump()} if isinstance(text, Blob) else {"data": base64.b64encode(text).decode()}
    )
    described = {
        "name": name,
        "executors": [{"image": image}],
        "contract": Contract.PYTASKMANAGER.value,
        "profile": profile,
        "payload": payload,
        "group": run_group(run_id),
        "tags": {RUN_ID_TAG: run_id},
    }
    return task_spec(json.dumps(described), source=source)
