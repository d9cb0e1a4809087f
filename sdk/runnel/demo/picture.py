"""The picture of a network at work: who hangs where and does what, the rounds, and the accuracy as it climbs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from runnel.cli.tables import table
from runnel.demo.scene import METRIC, REDUCER, Scene
from runnel.sdk.values import Round

PLOT_LINES = 5
# The heading, the bar and the plot with its axis.
_LINES_AROUND = 2 + 1 + PLOT_LINES + 2
# The table of rounds, and the gap before it.
_ROUNDS_WIDTH = 54
_PARTS = " ▁▂▃▄▅▆▇█"
_FULL = "█"
_WORDS = {"pushing": "sending", "counted": "done"}
_STYLES = {"counted": "green", "failed": "bold red", "running": "bold cyan"}
_PHASES = ("training", "reducing", "validating")


def picture(scene: Scene, *, seconds: float, width: int, height: int, ascii_only: bool) -> RenderableType:
    """Return what is to be seen of ``scene`` on a terminal of ``width`` columns and ``height`` lines."""
    lines = max(3, height - _LINES_AROUND)
    act = Text(scene.act, style="bold", no_wrap=True, overflow="ellipsis")
    act.truncate(width - 10, overflow="ellipsis", pad=True)
    head = Text.assemble(act, f"{seconds:>8.1f} s")
    sides = Table.grid(padding=(0, 4))
    sides.add_column(max_width=max(20, width - _ROUNDS_WIDTH), no_wrap=True, overflow="ellipsis")
    sides.add_row(_tree(scene, lines), _rounds(scene, lines - 2))
    parts: list[RenderableType] = [head, Text(), sides]
    if scene.round:
        done = len(scene.committed)
        progress = Table.grid(padding=(0, 1))
        bar_width = max(10, min(60, width - 20))
        progress.add_row(
            ProgressBar(total=scene.rounds, completed=done, width=bar_width), f"{done} of {scene.rounds} rounds"
        )
        parts.append(progress)
    if scene.course:
        parts += plot(scene.course, scene.rounds, width=width, ascii_only=ascii_only)
    parts += [Text(line, style="red", no_wrap=True, overflow="ellipsis") for line in scene.failures[-2:]]
    return Group(*parts)


def bar(share: float, width: int, *, ascii_only: bool) -> str:
    """Draw ``share`` (0 to 1) of ``width`` columns.

    >>> bar(0.5, 5, ascii_only=False), bar(0.5, 6, ascii_only=True)
    ('██▌', '###')
    """
    eighths = round(8 * width * min(max(share, 0.0), 1.0))
    if ascii_only:
        return "#" * (eighths // 8)
    return _FULL * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def plot(values: Sequence[float], wanted: int, *, width: int, ascii_only: bool) -> list[Text]:
    """Draw ``values`` (0 to 1) as columns over a scale that is written beside them, with room for ``wanted``."""
    room = width - 8
    shown = list(values)[-room:]
    each = max(1, min(4, room // max(wanted, 1)))
    low = math.floor(10 * min(shown)) / 10
    low = low - 0.1 if low == min(shown) and low > 0 else low
    rows = []
    for row in range(PLOT_LINES - 1, -1, -1):
        scale = low + (1.0 - low) * (row + 1) / PLOT_LINES
        label = f"{scale:6.0%} " if row == PLOT_LINES - 1 else f"{low:6.0%} " if row == 0 else " " * 7
        cells = ""
        for value in shown:
            eighths = min(8, max(0, round(8 * (PLOT_LINES * (value - low) / (1.0 - low) - row))))
            mark = ("#" if eighths >= 4 else " ") if ascii_only else _PARTS[eighths]
            cells += mark * max(1, each - 1) + (" " if each > 1 else "")
        rows.append(Text.assemble((label, "dim"), (cells, "green")))
    rows.append(Text(f"       {METRIC} at the sites, {shown[-1]:.1%} after the last round", style="dim"))
    return rows


def _tree(scene: Scene, lines: int) -> Tree:
    root = Tree(Text(REDUCER, style="bold"), guide_style="dim")
    spell = 1 + len(scene.combiners) + len(scene.clients) <= lines
    _add_clients(scene, root, REDUCER, spell=spell)
    shown = scene.combiners if spell else scene.combiners[: max(1, (lines - 3) // 2)]
    for combiner in shown:
        _add_clients(scene, root.add(Text(combiner, style="bold")), combiner, spell=spell)
    if len(shown) < len(scene.combiners):
        root.add(Text(f"and {len(scene.combiners) - len(shown)} more", style="dim"))
    return root


def _add_clients(scene: Scene, branch: Tree, above: str, *, spell: bool) -> None:
    """Add the clients below ``above`` one by one, or, where there is no room for that, how many do what."""
    clients = scene.below(above)
    doing = [_doing(scene, name) for name in clients]
    if spell:
        for name, (word, style) in zip(clients, doing, strict=True):
            branch.add(Text.assemble(f"{name:<8} ", (f"{word:<10}", style)))
    elif clients:
        text = Text(no_wrap=True, overflow="ellipsis")
        for (word, style), number in Counter(doing).most_common():
            text.append(f"{number} {word or 'clients'} ", style=style)
        branch.add(text)


def _doing(scene: Scene, client: str) -> tuple[str, str]:
    stage = scene.stages.get(client)
    if stage is None:
        return "waiting" if scene.phase else "", "dim"
    if stage == "running":
        return ("validating" if scene.work == "validate" else "training"), _STYLES[stage]
    return _WORDS.get(stage, stage), _STYLES.get(stage, "cyan")


def _rounds(scene: Scene, most: int) -> Table | Text:
    if not scene.round:
        return Text()
    columns = ("round", "updates", "train", "reduce", "validate", METRIC)
    made = table(*columns, right=columns)
    made.padding = (0, 1, 0, 0)
    rows = [_row(item) for item in scene.ordered]
    if scene.round not in scene.committed and scene.phase:
        rows.append([Text(str(scene.round)), Text(), *(_now(name, scene.phase) for name in _PHASES), Text()])
    for row in rows[-max(1, most) :]:
        made.add_row(*row)
    return made


def _row(item: Round) -> list[Text]:
    phases = [Text(f"{item.phases.get(name, 0.0):.2f} s") for name in _PHASES]
    measured = f"{item.metrics[METRIC]:.1%}" if METRIC in item.metrics else ""
    late = Text(str(item.updates), style="" if not (item.late or item.failed) else "yellow")
    return [Text(str(item.round)), late, *phases, Text(measured, style="green")]


def _now(name: str, phase: str) -> Text:
    return Text("now" if name == phase else "", style="cyan")
