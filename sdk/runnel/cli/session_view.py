"""How a session looks to people: as it runs and when it has ended."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runnel.cli.tables import cell, duration, facts, metrics, number, sparkline, status, table, when
from runnel.common.protocol import REFUSING, WAITING
from runnel.sdk.values import Event, Round, Session, read

_MAX_ROUNDS = 15
_MAX_METRICS = 3
_STAGES = ("preparing", "fetching", "running", "pushing", "counted", "failed", *WAITING.values(), *REFUSING.values())
_NAMES_SHOWN = 4


class SessionProgress:
    """What is known of a session, brought up to date by its events."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.phase = session.phase
        self.round = len(session.rounds)
        self.rounds: dict[int, Round] = {item.round: item for item in session.rounds}
        self.stages: Mapping[str, str] = {}
        self.work = ""
        self.asked = 0
        self.counted = 0
        self.stalled = session.reason
        self.failures: list[str] = []

    def take(self, event: Event) -> None:
        """Take in an event; kinds that are not known change nothing."""
        data = event.data
        if event.kind == "session.phase":
            self.phase, self.round = str(data.get("phase", "")), int(data.get("round", 0))
            self.stages, self.asked, self.counted, self.stalled = {}, 0, 0, None
        elif event.kind == "progress":
            self.round, self.work = int(data.get("round", self.round)), str(data.get("work", ""))
            self.asked, self.counted = int(data.get("asked", 0)), int(data.get("counted", 0))
            self.stages, self.stalled = data.get("stages", {}), data.get("stalled")
        elif event.kind == "round.committed":
            made = read(Round, data)
            self.rounds[made.round] = made
        elif event.kind in {"client.failed", "client.awaiting"}:
            self.failures = [*self.failures[-2:], failure_line(event)]

    @property
    def ordered(self) -> list[Round]:
        """The rounds that are known, by number."""
        return [self.rounds[number] for number in sorted(self.rounds)]

    def __rich__(self) -> RenderableType:
        wanted = int(self.session.config.get("rounds") or 0)
        done = len(self.rounds)
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self.session.session, style="bold"),
            ProgressBar(total=max(wanted, done, 1), completed=done, width=40),
            f"{done}/{wanted} rounds",
        )
        parts: list[RenderableType] = [head, Text(self._present(), style="cyan"), *_stages(self.stages)]
        parts += rounds_parts(self.ordered, self.session)
        parts += [Text(line, style="red") for line in self.failures]
        return Group(*parts)

    def _present(self) -> str:
        asked = f", {self.counted} of {self.asked} in" if self.asked else ""
        waits = f": {self.stalled}" if self.stalled else ""
        return f"round {self.round}: {self.phase}{asked}{waits}" if self.round else f"{self.phase}{waits}"


def session_parts(session: Session) -> RenderableType:
    """Return everything about a session."""
    config = session.config
    asked = config.get("sample")
    head = facts(
        [
            ("session", f"{session.session}  {session.name}".rstrip()),
            ("status", _status(session)),
            ("rounds", f"{len(session.rounds)} of {config.get('rounds')}"),
            ("model", session.model),
            ("seed", session.seed),
            ("package", session.package),
            ("strategy", _strategy(config)),
            ("clients", f"at least {config.get('min_clients')}, asked: {'all' if asked is None else asked}"),
            ("stop when", config.get("stop_when")),
            ("started", when(session.created_at)),
            ("ended", when(session.finished_at) or None),
        ]
    )
    return Group(head, *([Text(), *rounds_parts(session.rounds, session)] if session.rounds else []))


def rounds_parts(rounds: Sequence[Round], session: Session) -> list[RenderableType]:
    """Return the table of the last rounds and the course of the metric that matters most."""
    if not rounds:
        return []
    names = metric_names(rounds, session)[:_MAX_METRICS]
    waits = any(item.awaiting for item in rounds)
    counts = ("round", "updates", "late", "failed", *(("awaiting",) if waits else ()))
    made = table(*counts, "seconds", *names, right=(*counts, "seconds", *names))
    for item in rounds[-_MAX_ROUNDS:]:
        late = Text(str(item.late), style="yellow" if item.late else "")
        failed = Text(str(item.failed), style="red" if item.failed else "")
        awaiting = [Text(str(item.awaiting or 0), style="yellow")] if waits else []
        seconds = "" if item.seconds is None else f"{item.seconds:.2f}"
        cells = [cell(item.metrics[name]) if name in item.metrics else "" for name in names]
        made.add_row(str(item.round), str(item.updates), late, failed, *awaiting, seconds, *cells)
    parts: list[RenderableType] = []
    if len(rounds) > _MAX_ROUNDS:
        parts.append(Text(f"… {len(rounds) - _MAX_ROUNDS} rounds before", style="dim"))
    parts.append(made)
    course = [value for item in rounds for name, value in item.metrics.items() if name == names[0] and _finite(value)]
    if len(course) > 1:
        line = f"{names[0]} {sparkline(course, width=50)} {number(course[0])} → {number(course[-1])}"
        parts.append(Text(line, style="green"))
    return parts


def metric_names(rounds: Iterable[Round], session: Session) -> list[str]:
    """Return the metrics of the rounds; the one of the stop rule first, then accuracy, then by name."""
    names = {name for item in rounds for name in item.metrics}
    ruling = re.split("[<>]", str(session.config.get("stop_when") or ""))[0]

    def place(name: str) -> tuple[bool, bool, str]:
        return (name != ruling, name != "accuracy", name)

    return sorted(names, key=place)


def round_line(item: Round) -> str:
    """Return a committed round as one line."""
    waiting = f", {item.awaiting} awaiting their site" if item.awaiting else ""
    counts = f"{item.updates} updates, {item.late} late, {item.failed} failed{waiting}"
    measured = f", {metrics(item.metrics)}" if item.metrics else ""
    return f"round {item.round} committed: {counts}, {duration(item.seconds)}{measured}"


def event_line(event: Event) -> str | None:
    """Return an event as one line for a log; None for those that only pass."""
    data = event.data
    if event.kind == "session.created":
        return f"session {event.session} created"
    if event.kind == "session.phase":
        if data.get("phase") == "committed":
            return None  # round.committed tells it, with numbers
        return f"round {data.get('round')}: {data.get('phase')}" if data.get("round") else str(data.get("phase"))
    if event.kind == "round.committed":
        return round_line(read(Round, data))
    if event.kind in {"client.failed", "client.awaiting"}:
        return failure_line(event)
    if event.kind == "progress" and data.get("stalled"):
        return f"round {data.get('round')} waits: {data['stalled']}"
    if event.kind == "session.updated":
        return f"package {str(data.get('package'))[:16]} from round {data.get('from_round')} on"
    if event.kind == "session.ended":
        return ended_line(str(event.session), str(data.get("status")), data.get("reason"))
    return None


def failure_line(event: Event) -> str:
    """Return a client's failure as one line; what the reducer tells about it is in the event's data."""
    data = event.data
    what = data.get("message") or data.get("error") or data.get("code") or data.get("error_code") or "failed"
    client, work, at = data.get("client", "a client"), data.get("work"), data.get("round")
    if event.kind == "client.awaiting":
        return f"{client} waits for its site{f' in round {at}' if at else ''}: {what}"
    where = " ".join(part for part in (f"{work}" if work else "", f"in round {at}" if at else "") if part)
    return f"{client} failed{f' to {where}' if work else f' {where}' if where else ''}: {what}"


def ended_line(session: str, how: str, reason: str | None) -> str:
    """Return the end of a session as one line."""
    return f"session {session} {how}{f': {reason}' if reason else ''}"


def _status(session: Session) -> Text:
    text = status(session.status)
    if session.reason:
        text.append(f": {session.reason}", style="default")
    elif not session.ended:
        text.append(f" ({session.phase})", style="default")
    return text


def _strategy(config: Mapping[str, object]) -> str:
    options = config.get("strategy_options")
    told = ", ".join(f"{name}={value}" for name, value in options.items()) if isinstance(options, Mapping) else ""
    return f"{config.get('strategy')} {told}".rstrip()


def _stages(stages: Mapping[str, str]) -> list[Text]:
    clients: dict[str, list[str]] = defaultdict(list)
    for client in sorted(stages):
        clients[stages[client]].append(client)
    known = [stage for stage in _STAGES if stage in clients]
    lines = []
    for stage in known + sorted(clients.keys() - set(known)):
        names = clients[stage]
        style = {"failed": "red", "counted": "green"}.get(stage, "dim")
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        line = Text.assemble(("  " + stage, style), f" {', '.join(names[:_NAMES_SHOWN])}{more}")
        line.no_wrap, line.overflow = True, "ellipsis"
        lines.append(line)
    return lines


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
