"""Draw demo.svg: what a terminal shows of a real run, in the midst of it. Usage: python docs/img/demo.py"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from runnel.demo import DemoOptions, locate_example, run_demo
from runnel.demo.picture import picture
from runnel.demo.scene import Scene
from runnel.demo.screens import LineScreen

WIDTH, HEIGHT = 92, 24
ROUNDS, SHOWN_ROUND = 10, 8
TARGET = Path(__file__).with_suffix(".svg")


class Photographer(LineScreen):
    """A screen that takes one picture: while most clients train in round SHOWN_ROUND."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.svg = ""
        self._scene: Scene | None = None
        self._since = time.monotonic()

    def begin(self, scene: Scene) -> None:
        """Keep an eye on ``scene``."""
        self._scene, self._since = scene, time.monotonic()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            scene = self._scene
            if scene is not None and not self.svg and scene.round == SHOWN_ROUND and scene.work == "train":
                at_work = [stage for stage in scene.stages.values() if stage in {"running", "counted", "pushing"}]
                if len(at_work) > len(scene.clients) // 2:
                    self.svg = self._draw(scene)
            await asyncio.sleep(0.02)

    def _draw(self, scene: Scene) -> str:
        console = Console(record=True, width=WIDTH, force_terminal=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
        with console.file:
            seconds = time.monotonic() - self._since
            console.print(picture(scene, seconds=seconds, width=WIDTH, height=HEIGHT, ascii_only=False))
            svg = console.export_svg(title="make demo", theme=SVG_EXPORT_THEME, unique_id="demo")
        # Fonts from elsewhere are not fetched in a README; any fixed-width one does.
        svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
        return "\n".join(line.rstrip() for line in svg.replace("Fira Code", "ui-monospace").splitlines()) + "\n"


async def main() -> None:
    """Run the demo and write the picture."""
    screen = Photographer()
    with tempfile.TemporaryDirectory() as folder:
        options = DemoOptions(rounds=ROUNDS, folder=Path(folder) / "demo", example=locate_example())
        await run_demo(options, screen, stop=asyncio.Event(), environ=os.environ)
    TARGET.write_text(screen.svg, encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
