"""``runnel client results``: what the people of a site see and decide of results that wait at the site."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runnel.cli.desk import Desk, command
from runnel.cli.site_commands import State, state_folder

if TYPE_CHECKING:
    from runnel.client.tasks.release import Waiting

Run = Annotated[str, typer.Argument(metavar="RUN", help="Its id; the first characters after run- will do.")]


def add_results(client: typer.Typer) -> None:
    """Add the commands below ``runnel client``."""
    results = typer.Typer(
        help="Results that wait until somebody has looked at them: list, show, release, block.",
        rich_markup_mode=None,
        add_completion=False,
    )
    results.callback(invoke_without_command=True)(begin)
    command(results, "list", local=True)(list_results)
    command(results, "show", local=True)(show)
    command(results, "release", local=True)(release)
    command(results, "block", local=True)(block)
    client.add_typer(results, name="results")


def begin(context: typer.Context, state: State = None) -> None:
    """Results that wait until somebody has looked at them: list, show, release, block."""
    context.obj = state
    if context.invoked_subcommand is None:
        list_results(Desk(as_json=False), context)


def list_results(desk: Desk, context: typer.Context, state: State = None) -> None:
    """List the runs whose results wait."""
    from runnel.cli.result_view import waiting_results_table
    from runnel.client.tasks.release import waiting_results

    waiting = waiting_results(state_folder(state, context))
    desk.answer([_document(each) for each in waiting], lambda: waiting_results_table(waiting))


def show(
    desk: Desk,
    context: typer.Context,
    run: Run,
    state: State = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Copy the files there, to look at them.")
    ] = None,
) -> None:
    """Show what a run wants to give out: who asked, what ran, each file, and how the text files begin.

    That somebody looked is in the site's log.
    """
    import shutil

    from runnel.cli.result_view import result_parts
    from runnel.client.audit import AUDIT_FILE, AuditLog
    from runnel.client.tasks.release import find_waiting, record_look

    folder = state_folder(state, context)
    waiting = find_waiting(folder, run)
    record_look(AuditLog(folder / AUDIT_FILE), waiting, by=getpass.getuser(), copied=output is not None)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for file, path in waiting.files:
            shutil.copyfile(path, output / Path(file.name).name)
    desk.answer(_document(waiting), lambda: result_parts(waiting))


def release(
    desk: Desk,
    context: typer.Context,
    run: Run,
    state: State = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="For this site's records.")] = "",
) -> None:
    """Let the results of a run leave; the client notices by itself. There is no second decision."""
    _decide(desk, state_folder(state, context), run, release=True, reason=reason)


def block(
    desk: Desk,
    context: typer.Context,
    run: Run,
    state: State = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Who asked for the run reads it too.")] = "",
) -> None:
    """Keep the results of a run here; the client removes them. There is no second decision."""
    _decide(desk, state_folder(state, context), run, release=False, reason=reason)


def _decide(desk: Desk, folder: Path, run: str, *, release: bool, reason: str) -> None:
    from runnel.client.audit import AUDIT_FILE, AuditLog, utc_now
    from runnel.client.tasks.release import RUNS, Decision, Decisions, find_waiting, record_decision

    run_id, by = find_waiting(folder, run).held.run_id, getpass.getuser()
    decision = Decision(release=release, by=by, at=utc_now(), reason=reason)
    record_decision(AuditLog(folder / AUDIT_FILE), Decisions(folder / RUNS), run_id, decision)
    if desk.as_json:
        desk.write_json({"run": run_id, "release": release, "by": by})
        return
    desk.say(f"{'Released' if release else 'Blocked'} the results of {run_id}.")


def _document(waiting: Waiting) -> dict[str, Any]:
    order, result = waiting.held.order, waiting.held.result
    return {
        "run": order.run_id,
        "task": order.task_id,
        "organisation": order.organisation,
        "user": order.user,
        "exit_code": None if result is None else result.exit_code,
        "failure": None if result is None or result.failure is None else result.failure.message,
        "files": [
            {
                "name": file.name,
                "media_type": file.media_type,
                "size_bytes": file.blob.size_bytes,
                "sha256": file.blob.sha256,
                "path": str(path),
            }
            for file, path in waiting.files
        ],
    }
