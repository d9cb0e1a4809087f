"""``runnel demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Rounds of training.")] = 10,
    clients: Annotated[int, typer.Option(min=1, max=100, help="Sites with data, each a process.")] = 6,
    combiners: Annotated[int, typer.Option(min=0, max=20, help="Between clients and reducer, each a process.")] = 2,
    non_iid: Annotated[bool, typer.Option("--non-iid", help="Sites that differ in the digits that they have.")] = False,
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the model is written.")] = Path(
        "runnel-demo"
    ),
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep state, data and logs in DIR, and a script that starts it all again.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON document on standard output, progress on standard error.")
    ] = False,
) -> None:
    """Run a whole network on this machine and watch it train.

    A reducer, combiners and clients start as processes of their own, on free ports of the loopback. The clients train a
    small network on the handwritten digits that come with scikit-learn, each on its share, and no share leaves its
    client. At the end the model is compared with one that was trained on all data in one place, and with that of a
    single site. Ctrl-C ends everything; only DIR/model.npz is left of it, or with --keep all.
    """
    import asyncio
    import json
    import os
    import signal
    import sys

    from runnel.common.lifetime import INTERRUPTED, run_until_signal
    from runnel.common.logs import setup_logs
    from runnel.demo.example import require_installed

    require_installed()

    from runnel.cli.desk import make_console
    from runnel.demo import DemoOptions, locate_example, make_screen, run_demo
    from runnel.demo.commands import runnel_shown
    from runnel.demo.demonstration import Interrupted

    setup_logs("warning")
    options = DemoOptions(
        rounds=rounds,
        clients=clients,
        combiners=combiners,
        non_iid=non_iid,
        folder=folder,
        keep=keep,
        example=locate_example(),
    )
    screen = make_screen(make_console(error=as_json))
    outcomes = []

    async def perform(stop: asyncio.Event) -> None:
        outcomes.append(await run_demo(options, screen, stop=stop, environ=os.environ))

    try:
        asyncio.run(run_until_signal(perform, signals=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))
    except (Interrupted, asyncio.CancelledError, KeyboardInterrupt) as error:
        screen.remark("Stopped. Nothing of the network runs any more.")
        raise typer.Exit(INTERRUPTED) from error
    (outcome,) = outcomes
    runnel = runnel_shown(Path.cwd())
    screen.close(lambda width, ascii_only: outcome.closing(runnel=runnel, width=width, ascii_only=ascii_only))
    if as_json:
        sys.stdout.write(json.dumps(outcome.document()) + "\n")
        sys.stdout.flush()
