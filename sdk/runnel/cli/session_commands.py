"""``runnel session``: train, and see how it goes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from runnel.cli.client_settings import read_client_settings
from runnel.cli.desk import Desk, command, group
from runnel.common.errors import InvalidInput

app = group("Train: start, watch, show, stop, resume, extend and update sessions.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The session; 4 or more characters of its id will do.")]
Watch = Annotated[bool, typer.Option("--watch", help="Stay and show how it goes; exit status 0 only if it finished.")]


@command(app, "start")
def start(
    desk: Desk,
    package: Annotated[
        str, typer.Option("--package", metavar="FILE_OR_DIGEST", help="Compute package; a file is pushed first.")
    ],
    seed: Annotated[
        str, typer.Option("--seed", metavar="FILE_OR_MODEL", help="Model to start from; a file is pushed first.")
    ],
    rounds: Annotated[int, typer.Option("--rounds", help="How many rounds to run.")],
    name: Annotated[str, typer.Option("--name", help="For people; need not be unique.")] = "",
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy",
            help="Of the mean: fedavg, fedavgm, fedadagrad, fedadam, fedyogi. Asynchronous: fedbuff, with --buffer. "
            "Robust: median, trimmed_mean, krum, multi_krum, bulyan, geometric_median, norm_clipping. Asynchronous and "
            "robust ones need every update at the reducer, so traffic and disk grow with the number of clients there "
            "and at combiners.",
        ),
    ] = "fedavg",
    strategy_option: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy-option",
            metavar="NAME=NUMBER",
            help="Of the strategy, such as learning_rate=0.1, beta=0.2, f=1, max_norm=5; may be repeated.",
        ),
    ] = None,
    min_clients: Annotated[int, typer.Option("--min-clients", help="Updates that a round needs at least.")] = 1,
    sample: Annotated[
        str | None,
        typer.Option(
            "--sample", metavar="FRACTION|COUNT", help="Clients that a round asks: 0.5 is half of them, 10 is ten."
        ),
    ] = None,
    round_timeout: Annotated[
        float, typer.Option("--round-timeout", metavar="SECONDS", help="From first request to close of a phase.")
    ] = 600.0,
    over_select: Annotated[
        float, typer.Option("--over-select", metavar="FACTOR", help="Ask so many times the sample; late ones are left.")
    ] = 1.0,
    buffer: Annotated[
        int | None,
        typer.Option(
            "--buffer",
            metavar="COUNT",
            help="Close a round when so many updates are in; with fedbuff so many make a model.",
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option("--retries", help="How often a phase with too few updates is opened again.")
    ] = 3,
    validate_every: Annotated[
        int, typer.Option("--validate-every", metavar="N", help="Validate each N-th round and the last; 0: never.")
    ] = 1,
    compress: Annotated[
        str,
        typer.Option(
            "--compress",
            metavar="HOW",
            help="How clients compress their updates: none, fp16, bf16, int8, top-k[:FRACTION], zstd, or one of the "
            "lossy ones +zstd.",
        ),
    ] = "none",
    stop_when: Annotated[
        str | None, typer.Option("--stop-when", metavar="RULE", help="End early, for example 'accuracy>=0.97'.")
    ] = None,
    client_settings: Annotated[
        str | None, typer.Option("--client-settings", metavar="JSON", help="Object that is handed to the package.")
    ] = None,
    random_seed: Annotated[int | None, typer.Option("--random-seed", help="Of the sampling of clients.")] = None,
    keep_models: Annotated[
        int | None,
        typer.Option(
            "--keep-models",
            metavar="N",
            help="Keep the files of the newest N models, the seed and the best by --stop-when; 0: all. "
            "[default: as the reducer is set]",
        ),
    ] = None,
    server_functions: Annotated[
        bool,
        typer.Option(
            "--server-functions/--no-server-functions",
            help="Whether functions of the package that select clients and aggregate are used, if it has any.",
        ),
    ] = True,
    watch: Watch = False,
) -> None:
    """Start a session, which goes on by itself."""
    options = _strategy_options(strategy_option or [])
    settings = read_client_settings(client_settings)
    with desk.transfer("pushing") as progress:
        session = desk.network.sessions.start(
            package=package,
            seed=seed,
            rounds=rounds,
            name=name,
            strategy=strategy,
            strategy_options=options,
            min_clients=min_clients,
            sample=sample,
            over_select=over_select,
            buffer=buffer,
            round_timeout_s=round_timeout,
            retries=retries,
            validate_every=validate_every,
            compress=compress,
            stop_when=stop_when,
            client_settings=settings,
            random_seed=random_seed,
            keep_models=keep_models,
            server_functions=server_functions,
            progress=progress,
        )
    if watch:
        _watch(desk, session.session)
    elif desk.as_json:
        desk.write_json(session.raw)
    else:
        desk.say(f"{session.session} runs {rounds} rounds. Watch it: runnel session watch {session.session}")


@command(app, "list")
def list_sessions(desk: Desk) -> None:
    """List sessions, newest first."""
    from runnel.cli.tables import status, table, when

    sessions = list(desk.network.sessions.list())
    if desk.as_json:
        desk.write_json([session.raw for session in sessions])
        return
    made = table("session", "name", "status", "rounds", "strategy", "started", right=("rounds",), fold=("name",))
    for session in sessions:
        rounds, strategy = session.config.get("rounds"), session.config.get("strategy")
        state = status(session.status)
        made.add_row(session.session, session.name, state, str(rounds), str(strategy), when(session.created_at))
    desk.console.print(made)


@command(app, "show")
def show(
    desk: Desk,
    session: Id,
    clients: Annotated[bool, typer.Option("--clients", help="Add each client's part in each round.")] = False,
) -> None:
    """Show a session with its rounds."""
    from rich.console import Group

    from runnel.cli.session_view import session_parts

    shown = desk.network.sessions.show(session, clients=clients)
    parts = [session_parts(shown)] if not desk.as_json else []
    if clients and not desk.as_json:
        parts.append(_contributions(shown.rounds))
    desk.answer(shown.raw, lambda: Group(*parts))


@command(app, "watch")
def watch(desk: Desk, session: Id) -> None:
    """Follow a session until it ends; exit status 0 only if it finished. Ctrl-C leaves it running."""
    _watch(desk, session)


@command(app, "stop")
def stop(desk: Desk, session: Id) -> None:
    """Stop a session; its newest model stays, and it can be resumed."""
    _told(desk, desk.network.sessions.stop(session))


@command(app, "resume")
def resume(desk: Desk, session: Id, watch: Watch = False) -> None:
    """Go on with a stopped or failed session."""
    resumed = desk.network.sessions.resume(session)
    if watch:
        _watch(desk, resumed.session)
    else:
        _told(desk, resumed)


@command(app, "extend")
def extend(
    desk: Desk,
    session: Id,
    rounds: Annotated[int, typer.Option("--rounds", help="How many rounds to add.")],
    watch: Watch = False,
) -> None:
    """Add rounds to a session; one that has ended goes on."""
    extended = desk.network.sessions.extend(session, rounds)
    if watch:
        _watch(desk, extended.session)
    else:
        _told(desk, extended)


@command(app, "update")
def update(
    desk: Desk,
    session: Id,
    package: Annotated[
        str, typer.Option("--package", metavar="FILE_OR_DIGEST", help="New compute package; a file is pushed first.")
    ],
) -> None:
    """Give a session another package, from the next round that begins; the round under way keeps what it has."""
    with desk.transfer("pushing") as progress:
        updated = desk.network.sessions.update(session, package=package, progress=progress)
    if desk.as_json:
        desk.write_json(updated.raw)
    else:
        desk.say(f"{updated.session} runs package {updated.package[:16]} from the next round that begins.")


@command(app, "logs")
def logs(
    desk: Desk,
    session: Id,
    round_number: Annotated[int | None, typer.Option("--round", help="Only of this round.")] = None,
    client: Annotated[str | None, typer.Option("--client", metavar="NAME", help="Only of this client.")] = None,
) -> None:
    """Show what the package's entry points wrote at the clients."""
    lines = desk.network.sessions.logs(session, round=round_number, client=client)
    if desk.as_json:
        desk.write_json([line.raw for line in lines])
        return
    for line in lines:
        moment = line.at.astimezone().strftime("%H:%M:%S")
        desk.say(f"{moment} round {line.round} {line.client} {line.work} {line.stream}: {line.text}")


def _watch(desk: Desk, session: str) -> None:
    """Follow to the end; the exit status tells whether it finished."""
    from runnel.cli.session_view import SessionProgress, ended_line, event_line, session_parts

    shown = desk.network.sessions.show(session)
    progress = SessionProgress(shown)
    events = desk.network.sessions.watch(shown)
    try:
        if desk.console.is_terminal:
            from rich.live import Live

            with Live(progress, console=desk.console, refresh_per_second=8, transient=True):
                for event in events:
                    progress.take(event)
        else:
            for event in events:
                line = event_line(event)
                if line is not None:
                    desk.console.print(line, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        desk.aside.print(
            f"{shown.session} goes on. Watch it again: runnel session watch {shown.session}   "
            f"Stop it: runnel session stop {shown.session}",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    ended = desk.network.sessions.show(shown)
    if desk.as_json:
        desk.write_json(ended.raw)
    elif desk.console.is_terminal:
        desk.console.print(session_parts(ended))
        if ended.status == "finished":
            desk.say(f"Get the model: runnel model get {ended.model} -o model.npz")
    if ended.status != "finished":
        if desk.as_json or desk.console.is_terminal:
            desk.aside.print(ended_line(ended.session, ended.status, ended.reason), markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _told(desk: Desk, session: Any) -> None:
    if desk.as_json:
        desk.write_json(session.raw)
        return
    done, wanted = len(session.rounds), session.config.get("rounds")
    desk.say(f"{session.session} is {session.status}, {done} of {wanted} rounds done.")


def _contributions(rounds: Any) -> Any:
    from runnel.cli.tables import metrics, number, status, table

    made = table("round", "client", "work", "status", "weight", "metrics or error", fold=("metrics or error",))
    for item in rounds:
        for part in item.clients:
            told = part.error or metrics(part.metrics)
            weight = number(part.weight) if part.weight is not None else ""
            made.add_row(str(item.round), part.client, part.work, status(part.status), weight, told)
    return made


def _strategy_options(given: list[str]) -> dict[str, float]:
    options: dict[str, float] = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            options[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not (name.strip() and equals):
            raise InvalidInput(
                f"--strategy-option: {text!r} came; it has to be NAME=NUMBER.", hint="For example learning_rate=0.1."
            )
    return options
