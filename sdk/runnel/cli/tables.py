"""How values look in tables, on 80 columns and more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from rich import box
from rich.table import Table
from rich.text import Text

STATUS_STYLES = {
    "finished": "green",
    "running": "cyan",
    "done": "green",
    "queued": "yellow",
    "awaiting-release": "yellow",
    "cancelled": "yellow",
    "rejected": "red",
    "stopped": "yellow",
    "failed": "red",
    "attached": "green",
    "away": "yellow",
    "counted": "green",
    "awaiting": "yellow",
    "late": "yellow",
    "revoked": "yellow",
    "expired": "yellow",
}


def table(*columns: str, right: Sequence[str] = (), fold: Sequence[str] = ()) -> Table:
    """Make a table. Columns named in ``right`` hold numbers; those in ``fold`` give way when there is no room."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column not in fold,
            overflow="fold" if column in fold else "ellipsis",
        )
    return made


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Make two columns of names and values; a value of None is left out."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            made.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    return made


def status(value: str) -> Text:
    """Colour a status."""
    return Text(value, style=STATUS_STYLES.get(value, ""))


def size(number: float) -> str:
    """Write a number of bytes for people, in powers of 1000.

    >>> size(999), size(1000), size(2_340_000)
    ('999 B', '1.0 kB', '2.3 MB')
    """
    if number < 1000:
        return f"{number:.0f} B"
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 999.95:
            return f"{number:.1f} {unit}"
    return f"{number / 1000:.1f} TB"


def when(moment: datetime | None) -> str:
    """Write a time in the reader's zone, to the minute."""
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M")


def ago(moment: datetime, *, now: datetime | None = None) -> str:
    """Write how long ago a time was.

    >>> ago(datetime(2026, 1, 1, tzinfo=UTC), now=datetime(2026, 1, 1, 0, 1, 30, tzinfo=UTC))
    '1 min ago'
    """
    seconds = max(0.0, ((now or datetime.now(UTC)) - moment).total_seconds())
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def duration(seconds: float | None) -> str:
    """Write a number of seconds.

    >>> duration(0.0123), duration(12.34), duration(75), duration(None)
    ('0.01 s', '12.3 s', '1 min 15 s', '')
    """
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def number(value: float | None) -> str:
    """Write a metric with four significant digits; one that is no number as -.

    >>> number(0.97654), number(1234.5), number(None)
    ('0.9765', '1234', '-')
    """
    return "-" if value is None else f"{value:.4g}"


def cell(value: float | None) -> str:
    """Write a metric for a column, where the points should stand below each other.

    >>> cell(1.0), cell(0.97654), cell(12345.6), cell(3.8e-06)
    ('1.0000', '0.9765', '1.23e+04', '3.8e-06')
    """
    if value is None or value == 0 or 1e-3 <= abs(value) < 1e3:
        return "-" if value is None else f"{value:.4f}"
    return f"{value:.3g}"


def metrics(values: Mapping[str, float]) -> str:
    """Write metrics in a row."""
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())


def sparkline(values: Sequence[float], *, width: int) -> str:
    """Draw values as bars of eight heights between the smallest and the largest; ``width`` keeps the last ones.

    >>> sparkline([0, 1, 2, 3], width=8)
    '▁▃▆█'
    """
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = high - low
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / span) if span > 0 else 3] for value in shown)
