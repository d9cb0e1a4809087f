"""What the body of ``POST /task`` says, in each release's words."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from runnel.common.errors import InvalidInput


def named_always(body: Mapping[str, Any]) -> str | None:
    """Return the database that clients of releases 2 and 3 name, also where there is none of the name."""
    one = body.get("database")
    return one if isinstance(one, str) and "databases" not in body else None


def databases_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the databases that a task asks for, each with its label and what else is said of it.

    Raises:
        InvalidInput: one has no label.
    """
    if (one := named_always(body)) is not None:
        return [{"label": one}]
    said = body.get("databases") or []
    listed = said if isinstance(said, list) else [None]
    flat = [each for group in listed for each in (group if isinstance(group, list) else [group])]  # groups: release 5
    labels = [{"label": each} if isinstance(each, str) else each for each in flat]
    if not all(isinstance(each, dict) and isinstance(each.get("label"), str) for each in labels):
        raise InvalidInput("Databases are objects with label.")
    return [dict(each) for each in labels if each is not None]


def input_of(asked: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    """Return the input for one site, ``asked``, as base64 of what the contract takes for a payload.

    Raises:
        InvalidInput: it is not base64, or no JSON where it has to be.
    """
    text = asked.get("input", asked.get("arguments", ""))
    if not isinstance(text, str):
        raise InvalidInput("The input of an organization is base64 text.")
    data = decoded(text)
    if "arguments" in asked:  # release 5 sends the function beside its arguments
        call = {"method": body.get("method"), "kwargs": _object(data), "action": body.get("action")}
        data = json.dumps({key: value for key, value in call.items() if value is not None}).encode()
    databases: Sequence[Any] = databases_of(body)
    grouped = "arguments" in asked and body.get("databases")
    if grouped or any(set(each) - {"label"} for each in databases):
        data = _with_parameters(data, body["databases"] if grouped else databases)
    return base64.b64encode(data).decode()


def _object(data: bytes) -> Any:
    try:
        return json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"The arguments of an organization are no JSON: {error}.") from None


def _with_parameters(data: bytes, databases: Sequence[Any]) -> bytes:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):  # a pickle, which nobody reads here
        return data
    return json.dumps(said | {"databases": list(databases)}).encode() if isinstance(said, dict) else data


def decoded(text: str) -> bytes:
    """Return the bytes of an input.

    Raises:
        InvalidInput: it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"The input of an organization is not base64: {error}.") from None
