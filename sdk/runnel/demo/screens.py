"""Where a demonstration is watched: a terminal that is painted anew, or lines for everything else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from runnel.demo.picture import picture
from runnel.demo.scene import Scene

_PERIOD_S = 0.1


class Screen(Protocol):
    """Shows a scene while its block is open."""

    def begin(self, scene: Scene) -> None:
        """Show ``scene`` from now on."""

    def end(self) -> None:
        """Leave the last picture and show nothing more of it."""

    def act(self, text: str) -> None:
        """Tell what is going on."""

    def line(self, text: str) -> None:
        """Tell what has happened."""

    async def run(self) -> None:
        """Keep the picture up to date until cancelled."""

    def remark(self, title: str, lines: Sequence[str] = ()) -> None:
        """Tell something after the end, perhaps with lines that a process wrote."""

    def close(self, render: Callable[[int, bool], RenderableType]) -> None:
        """Show the result, after the end; ``render`` is given the width and whether only ASCII can be shown."""


def make_screen(console: Console) -> Screen:
    """Make the screen that fits the console."""
    return LiveScreen(console) if console.is_terminal and not console.is_dumb_terminal else LineScreen(console)


class LineScreen:
    """Each thing that happens is a line."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def begin(self, scene: Scene) -> None:
        """Need nothing: lines come as they come."""

    def end(self) -> None:
        """Have nothing to end."""

    def act(self, text: str) -> None:
        """Write the line."""
        self.line(text)

    def line(self, text: str) -> None:
        """Write the line."""
        self.console.print(Text(text), soft_wrap=True)

    async def run(self) -> None:
        """Do nothing: lines are not repainted."""

    def remark(self, title: str, lines: Sequence[str] = ()) -> None:
        """Write it, the lines indented."""
        self.console.print(Text("\n".join([title, *(f"  {line}" for line in lines)])), soft_wrap=True)

    def close(self, render: Callable[[int, bool], RenderableType]) -> None:
        """Write the result."""
        self.console.print(render(self.console.width, self.console.options.ascii_only), soft_wrap=True)


class LiveScreen(LineScreen):
    """A picture that is painted anew a few times a second."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console)
        self._clock = clock
        self._live: Live | None = None

    def begin(self, scene: Scene) -> None:
        """Paint ``scene`` from now on."""
        since = self._clock()

        def paint() -> RenderableType:
            size = self.console.size
            return picture(
                scene,
                seconds=self._clock() - since,
                width=size.width,
                height=size.height - 1,
                ascii_only=self.console.options.ascii_only,
            )

        self._live = Live(console=self.console, auto_refresh=False, get_renderable=paint)
        self._live.start(refresh=True)

    def end(self) -> None:
        """Leave the last picture."""
        live, self._live = self._live, None
        if live is not None:
            live.refresh()
            live.stop()

    def act(self, text: str) -> None:
        """Leave it to the picture, which has it as its heading."""

    def line(self, text: str) -> None:
        """Leave it to the picture."""

    async def run(self) -> None:
        """Paint until cancelled."""
        while self._live is not None:
            self._live.refresh()
            await asyncio.sleep(_PERIOD_S)


class Shown:
    """Shows a scene on a screen while the block is open; a context manager."""

    def __init__(self, screen: Screen, scene: Scene) -> None:
        self._screen, self._scene = screen, scene

    def __enter__(self) -> Screen:
        self._screen.begin(self._scene)
        return self._screen

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.end()
