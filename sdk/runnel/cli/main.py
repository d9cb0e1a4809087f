"""The ``runnel`` command: what there is, what is loaded when, and how it ends.

Exit status: 0 when it did what was asked (``session watch`` and ``session start --watch``: only when the session
finished; ``task run --wait``: only when all of it is done), 1 when it could not, 2 for a command line or setting that
makes no sense, 130 when interrupted. An error is one line on standard error; with ``--json`` it is one JSON document
there, ``{"error": {"code", "message", "hint", "fields"}}``, and standard output stays empty. ``RUNNEL_DEBUG=1`` shows
the traceback of what nobody expected.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import typer

from runnel.cli.lazy import Entry, lazy_app
from runnel.common.errors import BadSettings, RunnelError

ENTRIES: Mapping[str, Entry] = {
    "demo": Entry("runnel.cli.demo_command:demo", "Run a whole network on this machine and watch it train."),
    "session": Entry("runnel.cli.session_commands:app", "Train: start, watch, show, stop, resume, extend."),
    "task": Entry("runnel.cli.task_commands:app", "Tasks: run an image at sites, results, approve."),
    "dataset": Entry("runnel.cli.dataset_commands:app", "Datasets: what sites publish of their data."),
    "package": Entry("runnel.cli.package_commands:app", "Compute packages: init, build, check, sign, push, list."),
    "model": Entry("runnel.cli.model_commands:app", "Models: list, show the trail, download."),
    "node": Entry("runnel.cli.node_commands:app", "Clients and combiners of the network."),
    "token": Entry("runnel.cli.token_commands:app", "Tokens: create, list, revoke."),
    "status": Entry("runnel.cli.status_command:app", "Show the network at a glance."),
    "reducer": Entry("runnel.cli.reducer_command:reducer", "Run a reducer, the centre of a network."),
    "combiner": Entry("runnel.cli.combiner_command:combiner", "Run a combiner between reducer and clients."),
    "client": Entry("runnel.cli.client_command:app", "Run a client beside the data."),
    "health": Entry("runnel.cli.health_command:app", "Ask a component of this machine whether it is well."),
    "version": Entry("runnel.cli.version_command:app", "Show the version."),
}

EXTRAS = {name: name for name in ("demo", "reducer", "combiner", "client")} | {"package": "people,client"}

app = lazy_app(
    ENTRIES,
    help="One network that sends computation to data that cannot move.",
    epilog="The first thing to try: runnel demo. The people's commands find the network by --url or RUNNEL_URL "
    "(http://127.0.0.1:7480) and show what they may by --token or RUNNEL_TOKEN; each has --json.",
)


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run the command line ``argv`` (None: that of the process) and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Its core writes to standard error in words of its own what comes here as an error too, for each attempt anew.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # It would read what every installed package says of itself, in search of plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        typer.main.get_command(app).main(args=arguments, prog_name="runnel")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except RunnelError as error:
        _tell(error, as_json="--json" in arguments)
        return 2 if isinstance(error, BadSettings) else 1
    except ModuleNotFoundError as error:
        command = next((word for word in arguments if word in ENTRIES), "")
        missing = RunnelError(
            f"This installation lacks {error.name}, which `runnel {command}` needs.",
            hint=f"Install it with: pip install 'runnel[{EXTRAS.get(command, 'people')}]'",
        )
        _tell(missing, as_json="--json" in arguments)
        return 2
    except Exception as error:
        if (os.environ if environ is None else environ).get("RUNNEL_DEBUG"):
            raise
        unexpected = RunnelError(
            f"Something unexpected happened: {type(error).__name__}: {error}".rstrip(": ") + ".",
            hint="RUNNEL_DEBUG=1 shows where.",
        )
        _tell(unexpected, as_json="--json" in arguments)
        return 1
    return 0


def _tell(error: RunnelError, *, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps({"error": error.as_wire()}, ensure_ascii=False), file=sys.stderr)
        return
    message = " ".join(error.message.split())
    typer.secho(f"error: {message}", fg="red", err=True, nl=not error.hint)
    if error.hint:
        typer.echo(f" {' '.join(error.hint.split())}", err=True)


if __name__ == "__main__":
    sys.exit(main())
