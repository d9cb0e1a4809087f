"""What every command for people has: the way to the network, ``--json``, and a place to write."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from runnel.sdk import Network
    from runnel.sdk.transfers import Progress

Act = Callable[..., None]

DEFAULT_URL = "http://127.0.0.1:7480"
# Tables in a pipe are for grep: nothing is cut off.
_PIPE_WIDTH = 200

_Json = Annotated[bool, typer.Option("--json", help="Write one JSON document on standard output, nothing else.")]
_Url = Annotated[str, typer.Option("--url", metavar="URL", envvar="RUNNEL_URL", help="Where the reducer serves HTTP.")]
_Token = Annotated[
    str | None,
    typer.Option("--token", metavar="TOKEN", envvar="RUNNEL_TOKEN", help="Needed unless the network is insecure."),
]
_CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca-file", metavar="FILE", envvar="RUNNEL_CA_FILE", help="Authority that signed the network's certificate."
    ),
]


class Desk:
    """Where a command writes and whom it asks.

    Args:
        as_json: one JSON document goes to standard output; what is for people goes to standard error.
        url: where the network's HTTP interface is.
        token: shown there.
        ca_file: PEM file of the authority that signed its certificate.
    """

    def __init__(
        self, *, as_json: bool, url: str = DEFAULT_URL, token: str | None = None, ca_file: Path | None = None
    ) -> None:
        self.as_json = as_json
        self._url, self._token, self._ca_file = url, token, ca_file
        self._network: Network | None = None

    @property
    def network(self) -> Network:
        """The network; made when it is first asked for."""
        if self._network is None:
            from runnel.sdk import Network

            self._network = Network(self._url, self._token or None, self._ca_file)
        return self._network

    def close(self) -> None:
        """Close the connections."""
        if self._network is not None:
            self._network.close()

    @cached_property
    def console(self) -> Console:
        """Where people read: standard output, or standard error when that is for JSON."""
        return make_console(error=self.as_json)

    @cached_property
    def aside(self) -> Console:
        """Standard error, for what passes by."""
        return make_console(error=True)

    def say(self, text: str) -> None:
        """Write a line for people; nothing with ``--json``."""
        if not self.as_json:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def answer(self, document: Any, render: Callable[[], RenderableType]) -> None:
        """Write the answer: as JSON when it was asked for, else as ``render`` shows it."""
        if self.as_json:
            self.write_json(document)
        else:
            self.console.print(render())

    def write_json(self, document: Any) -> None:
        """Write the one JSON document on standard output."""
        sys.stdout.write(json.dumps(document, ensure_ascii=False, default=str) + "\n")
        sys.stdout.flush()

    @contextmanager
    def transfer(self, label: str) -> Iterator[Progress | None]:
        """Show a bar on a terminal's standard error while bytes travel."""
        if not self.aside.is_terminal:
            yield None
            return
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self.aside, transient=True) as bars:
            task = bars.add_task(label, total=None)

            def progress(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)

            yield progress


def make_console(*, error: bool) -> Console:
    """Make a console; in a pipe it is wide and plain."""
    from rich.console import Console

    console = Console(stderr=error, highlight=False, emoji=False)
    return console if console.is_terminal else Console(stderr=error, highlight=False, emoji=False, width=_PIPE_WIDTH)


def command(
    app: typer.Typer, name: str, *, local: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function of a :class:`Desk` and its own options as the command ``name``.

    It gets ``--json`` and, unless it is ``local``, ``--url``, ``--token`` and ``--ca-file``.
    """

    def register(act: Act) -> Act:
        def run(**values: Any) -> None:
            connection = {} if local else {key: values.pop(key) for key in ("url", "token", "ca_file")}
            desk = Desk(as_json=values.pop("as_json"), **connection)
            try:
                act(desk, **values)
            finally:
                desk.close()

        own = list(inspect.signature(act, eval_str=True).parameters.values())[1:]
        shared = [_parameter("as_json", _Json, default=False)]
        if not local:
            shared += [
                _parameter("url", _Url, default=DEFAULT_URL),
                _parameter("token", _Token, default=None),
                _parameter("ca_file", _CaFile, default=None),
            ]
        parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own] + shared
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect.signature
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        run.__doc__, run.__name__ = act.__doc__, act.__name__
        app.command(name)(run)
        return act

    return register


def _parameter(name: str, annotation: Any, *, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def group(help: str) -> typer.Typer:
    """Make the application of a group of commands."""
    app = typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None, add_completion=False)
    app.callback()(_nothing)
    return app


def _nothing() -> None:
    """A group has a callback, or Typer takes a single command for the whole application."""
