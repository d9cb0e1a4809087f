"""Words of the commands about tasks: the options that they share, and what they say as values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from runnel.common.errors import InvalidInput

Select = Annotated[
    str | None, typer.Option("--select", metavar="QUERY", help="Of the site's data: { table { field field } }.")
]
Sql = Annotated[str | None, typer.Option("--sql", metavar="QUERY", help="Of the site's data: one SELECT.")]
Database = Annotated[str, typer.Option("--database", metavar="LABEL", help="Of which data is selected.")]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="KEY=VALUE", help="Entry of the JSON input; VALUE is JSON, or else text."),
]
InputFile = Annotated[
    Path | None, typer.Option("--input-file", metavar="FILE", help="The input as it is, in place of --input.")
]
Variables = Annotated[list[str] | None, typer.Option("--env", metavar="KEY=VALUE", help="Variable of the container.")]
CommandLine = Annotated[
    str | None, typer.Option("--command", metavar="WORDS", help="In place of the image's own arguments.")
]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def input_entries(given: list[str] | None) -> dict[str, Any] | None:
    """Return the input that entries make: each value is JSON where it is that, or else text."""
    if not given:
        return None
    return {key: _value(text) for key, text in key_values("--input", given).items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def key_values(option: str, given: list[str] | None) -> dict[str, str]:
    """Return what ``KEY=VALUE`` words say; raises InvalidInput naming the option and the word that is none."""
    pairs = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise InvalidInput(f"{option}: {text!r} came; it has to be KEY=VALUE.")
        pairs[key] = value
    return pairs


def seconds(text: str) -> float:
    """Return a time as people write it, in seconds.

    >>> seconds("30m"), seconds("7d")
    (1800.0, 604800.0)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", text.strip())
    if match is None:
        raise InvalidInput(f"--expires: {text!r} came; it has to be a number and s, m, h, d or w.", hint="Such as 7d.")
    return float(match[1]) * _UNITS[match[2]]
