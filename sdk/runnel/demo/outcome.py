"""What a demonstration came to: for machines one object, for people a small table and what to do next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from runnel.demo.picture import bar


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result.

    Args:
        accuracy: share of the test digits that the federated model gets right; ``accuracy_central``: all data in one
            place, as many passes; ``accuracy_alone``: the first site without the others.
        accuracies: of the rounds, each site measuring on its own held-out digits.
        test_digits: on how many digits the first three were measured; no site has any of them.
        model: file of the last model; ``model_id``: its name in the network.
        package: digest of the compute package; ``session``, ``url``: where the network was, and with ``folder`` will be
            when it is started again.
        seconds: from the first process to the last; ``seconds_per_round``: mean over the rounds.
        folder: everything that was kept; None: nothing but the model.
    """

    rounds: int
    clients: int
    combiners: int
    non_iid: bool
    accuracy: float
    accuracy_central: float
    accuracy_alone: float
    accuracies: tuple[float, ...]
    test_digits: int
    model: Path
    model_id: str
    package: str
    session: str
    url: str
    seconds: float
    seconds_per_round: float
    folder: Path | None

    def document(self) -> dict[str, Any]:
        """Return it as a JSON-ready object."""
        return {
            "rounds": self.rounds,
            "clients": self.clients,
            "combiners": self.combiners,
            "non_iid": self.non_iid,
            "accuracy": self.accuracy,
            "accuracy_central": self.accuracy_central,
            "accuracy_alone": self.accuracy_alone,
            "accuracies": list(self.accuracies),
            "model": str(self.model.absolute()),
            "model_id": self.model_id,
            "package": self.package,
            "session": self.session,
            "url": self.url,
            "seconds": round(self.seconds, 3),
            "seconds_per_round": round(self.seconds_per_round, 3),
            "dir": None if self.folder is None else str(self.folder.absolute()),
        }

    def closing(self, *, runnel: str, width: int, ascii_only: bool) -> RenderableType:
        """Return what people see at the end; ``runnel`` is what they type for the command, ``width`` in columns."""
        ways = [
            (f"{self.clients} sites together", self.accuracy, "bold green"),
            ("all data in one place", self.accuracy_central, "cyan"),
            ("site-1 alone", self.accuracy_alone, "yellow"),
        ]
        longest = max(len(name) for name, _, _ in ways)
        lines = Text(no_wrap=True, overflow="ignore")
        for name, value, style in ways:
            drawn = bar(value, min(40, width - 40), ascii_only=ascii_only)
            lines.append(f"  {name:<{longest}}  {value:>6.1%}  {drawn}\n", style=style)
        took = f"{self.rounds} rounds of {self.seconds_per_round:.2f} s, {self.seconds:.1f} s in all."
        return Group(
            Text(f"\nAccuracy on {self.test_digits} digits that no site has seen:", style="bold"),
            lines,
            Text(f"{took}\n"),
            Text.assemble("The model:  ", (_shown(self.model), "bold"), "  (numpy.load reads it)"),
            Text(f"\n{self._place()} Go on:"),
            _commands(self._next(runnel), width),
        )

    def _place(self) -> str:
        if self.folder is None:
            return "The network has ended and is removed."
        return f"The network has ended; its state and logs are kept in {_shown(self.folder)}."

    def _next(self, runnel: str) -> list[tuple[str, str]]:
        if self.folder is None:
            other = (f"{runnel} demo --non-iid", "with sites that have seen different digits")
            return [
                *([] if self.non_iid else [other]),
                (f"{runnel} demo --keep", "and look into the network afterwards"),
                (f"{runnel} package init mine", "train something of your own"),
            ]
        return [
            (f"sh {shlex.quote(_shown(self.folder / 'start'))}", "start it again; Ctrl-C ends it"),
            (f"export RUNNEL_URL={self.url}", "in another terminal"),
            (f"{runnel} session show {self.session}", "its rounds"),
            (f"{runnel} session extend {self.session} --rounds 5", "train on"),
            (f"{runnel} model list --session {self.session}", "its models"),
        ]


def _commands(rows: list[tuple[str, str]], width: int) -> Text:
    """Return lines that can be copied as they are: with their meaning beside them where there is room, else above."""
    longest = max(len(command) for command, _ in rows)
    beside = longest + max(len(meaning) for _, meaning in rows) + 6 <= width
    text = Text(no_wrap=True, overflow="ignore", end="")
    for command, meaning in rows:
        remark = (f"# {meaning}", "dim")
        text.append_text(
            Text.assemble("  ", f"{command:<{longest}}  ", remark, "\n")
            if beside
            else Text.assemble("  ", remark, f"\n  {command}\n")
        )
    return text


def _shown(path: Path) -> str:
    """Return ``path`` as short as it can be read in the present folder."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
