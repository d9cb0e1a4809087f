"""``runnel task try``: what would run at sites, on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runnel.cli.desk import Desk
from runnel.cli.task_words import (
    CommandLine,
    Database,
    Input,
    InputFile,
    Select,
    Sql,
    Variables,
    input_entries,
    key_values,
)
from runnel.common.errors import InvalidInput

if TYPE_CHECKING:
    from runnel.client.tasks.trial import Tried

_SHOWN_LINES = 20


def attempt(
    desk: Desk,
    script: Annotated[
        Path | None, typer.Argument(metavar="SCRIPT", help="A Python program; with --docker the image has its own.")
    ] = None,
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGUMENT]...", help="For the script.")] = None,
    docker: Annotated[
        str | None,
        typer.Option("--docker", metavar="IMAGE", help="Run this image in the local engine."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=PATH", help="A database, as `runnel client --data` has it."),
    ] = None,
    select: Select = None,
    sql: Sql = None,
    database: Database = "default",
    input: Input = None,
    input_file: InputFile = None,
    env: Variables = None,
    command_line: CommandLine = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="New folder for what it gives out.")
    ] = Path("trial"),
) -> None:
    """Try an analysis on this machine, with data of your own, before it goes to sites; exit status 1 if it failed."""
    import json
    import shlex

    from runnel.client.app import site_data
    from runnel.client.tasks.trial import try_image, try_script
    from runnel.common.logs import setup_logs
    from runnel.common.tasks import task_spec

    if (script is None) == (docker is None):
        raise InvalidInput("Name either a script or, by --docker, an image.")
    if input and input_file:
        raise InvalidInput("--input and --input-file exclude each other.")
    setup_logs("error")  # how it failed is said below
    payload = input_file.read_bytes() if input_file else None
    if input:
        payload = json.dumps(input_entries(input), ensure_ascii=False).encode()
    spec = task_spec(
        json.dumps(
            {
                "executors": [
                    {"image": docker or "script", "env": key_values("--env", env)}
                    | ({} if command_line is None else {"command": shlex.split(command_line)})
                ],
                "payload": None if payload is None else {"data": _base64(payload)},
                "selections": [
                    {"query": query, "language": language, "database": database}
                    for query, language in ((select, "graphql"), (sql, "sql"))
                    if query is not None
                ],
            }
        ),
        source="the command line",
    )
    databases = site_data(key_values("--data", data), None, {})
    if script is None:
        tried = asyncio.run(try_image(spec, databases=databases, output=output, say=desk.aside.print))
    else:
        tried = try_script(
            script,
            arguments or (),
            databases=databases,
            selections=spec.selections,
            payload=payload,
            variables=spec.executors[0].env,
            output=output,
        )
    desk.answer(_document(tried), lambda: "\n".join(str(path) for path in tried.files))
    if tried.failure:
        if script is not None:
            complaint = (output / "stderr").read_text(errors="replace").splitlines()
            desk.aside.print("\n".join(complaint[-_SHOWN_LINES:]), markup=False, soft_wrap=True)
        desk.aside.print(tried.failure, markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def _document(tried: Tried) -> dict[str, Any]:
    return {
        "exit_code": tried.exit_code,
        "failure": tried.failure or None,
        "files": [str(path) for path in tried.files],
    }
