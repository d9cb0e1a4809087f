"""What is known of the network and its session while they run: no clock, no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runnel.sdk.values import Event, Round, read

REDUCER = "reducer"
METRIC = "accuracy"


@dataclass(slots=True, kw_only=True)
class Scene:
    """Brought up to date by the events of the network.

    Args:
        rounds: that are to be run.
        act: what is going on, for people.
        attached: where each node that is attached hangs, by its name.
        stages: how far each client is with the present work, by its name.
        work: train, validate or empty.
        failures: of clients, one line each.
        status: of the session, once it has ended.
    """

    rounds: int
    act: str = ""
    attached: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    stages: Mapping[str, str] = field(default_factory=dict)
    work: str = ""
    phase: str = ""
    round: int = 0
    committed: dict[int, Round] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    status: str | None = None
    reason: str | None = None

    def take(self, event: Event) -> str | None:
        """Take in an event and return what to say of it in a log; None for what only passes."""
        match event.kind:
            case "node.attached":
                return self._attached(event.data)
            case "node.left":
                name = str(event.data["name"])
                return f"{name} has left" if self.attached.pop(name, None) is not None else None
            case "progress":
                self.stages = event.data.get("stages") or {}
                self.work = str(event.data.get("work", ""))
            case "session.phase":
                self.phase, self.round = str(event.data["phase"]), int(event.data["round"])
                self.stages = {}
            case "round.committed":
                made = read(Round, event.data)
                self.committed[made.round] = made
                return self._round_line(made)
            case "client.failed":
                what = " ".join(str(event.data.get("message") or event.data.get("code")).split())
                line = f"{event.data['client']} failed to {event.data['work']} in round {event.data['round']}: {what}"
                self.failures.append(line)
                return line
            case "session.ended":
                self.status, self.reason = str(event.data["status"]), event.data.get("reason")
                self.stages, self.phase = {}, ""
        return None

    @property
    def combiners(self) -> list[str]:
        """The combiners that are attached, in the order of their names."""
        return self._of_kind("combiner")

    @property
    def clients(self) -> list[str]:
        """The clients that are attached, in the order of their names."""
        return self._of_kind("client")

    def below(self, name: str) -> list[str]:
        """Return the clients that are attached to ``name``."""
        return [client for client in self.clients if self.attached[client] == name]

    @property
    def ordered(self) -> list[Round]:
        """The committed rounds by number."""
        return [self.committed[number] for number in sorted(self.committed)]

    @property
    def course(self) -> list[float]:
        """The accuracy of the rounds that were validated: each site's on its own held-out digits, averaged."""
        return [item.metrics[METRIC] for item in self.ordered if METRIC in item.metrics]

    def _of_kind(self, kind: str) -> list[str]:
        names = [name for name in self.attached if self.kinds[name] == kind]
        return sorted(names, key=lambda name: (len(name), name))

    def _attached(self, data: Mapping[str, object]) -> str | None:
        name, to = str(data["name"]), str(data["to"] or REDUCER)
        self.kinds[name] = str(data["node_kind"])
        if self.attached.get(name) == to:
            return None
        self.attached[name] = to
        return f"{name} attached to {to}"

    def _round_line(self, made: Round) -> str:
        phases = "  ".join(
            f"{name} {made.phases.get(name, 0.0):.2f} s" for name in ("training", "reducing", "validating")
        )
        measured = f"  {METRIC} {made.metrics[METRIC]:.4f}" if METRIC in made.metrics else ""
        width = len(str(self.rounds))
        updates = "update" if made.updates == 1 else "updates"
        return f"round {made.round:>{width}}/{self.rounds}  {made.updates} {updates}  {phases}{measured}"
