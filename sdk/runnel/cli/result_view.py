"""How results that wait at a site look to its people; whatever a run wrote is shown with the unprintable spelt out."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from runnel.cli.site_view import printable
from runnel.cli.tables import facts, size, table, when

if TYPE_CHECKING:
    from runnel.client.tasks.release import Waiting
    from runnel.common.protocol import ResultFile

_BEGINNING_BYTES = 2000
_MEMBERS = 200


def waiting_results_table(waiting: Sequence[Waiting]) -> RenderableType:
    """Return the runs whose results wait."""
    if not waiting:
        return Text("No results wait.")
    made = table(
        "run", "task", "asked by", "images", "files", "bytes", "since", right=("files", "bytes"), fold=("images",)
    )
    for each in waiting:
        order = each.held.order
        total = sum(file.blob.size_bytes for file, _ in each.files)
        made.add_row(
            order.run_id,
            order.task_id,
            printable(f"{order.organisation}/{order.user}"),
            printable(", ".join(_images(each))),
            str(len(each.files)),
            size(total),
            when(_since(each)),
        )
    return Group(made, Text("Look: runnel client results show RUN   then release RUN or block RUN"))


def result_parts(waiting: Waiting) -> RenderableType:
    """Return what one run wants to give out."""
    order, result = waiting.held.order, waiting.held.result
    failure = None if result is None else result.failure
    head = facts(
        [
            ("run", order.run_id),
            ("task", order.task_id),
            ("asked by", printable(f"{order.organisation}/{order.user}")),
            ("images", printable("\n".join(_images(waiting)))),
            ("what ran", "" if result is None else printable(result.image_digest)),
            ("exit code", "" if result is None or result.exit_code is None else result.exit_code),
            ("failure", None if failure is None else printable(failure.message)),
            ("came", when(_since(waiting))),
        ]
    )
    parts: list[RenderableType] = [head]
    for file, path in waiting.files:
        parts += [Text(), Text(f"{file.name}, {file.media_type}, {size(file.blob.size_bytes)}: {path}", style="bold")]
        parts += [Text(printable(line)) for line in _content(file, path)]
    return Group(*parts)


def _content(file: ResultFile, path: Path) -> Iterator[str]:
    if file.media_type == "application/zip":
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, OSError) as error:
            yield f"(it can't be read: {error})"
            return
        for member in members[:_MEMBERS]:
            yield f"  {member.filename} ({size(member.file_size)})"
        if len(members) > _MEMBERS:
            yield f"  … and {len(members) - _MEMBERS:,} more"
    elif file.media_type.startswith("text/"):
        with path.open("rb") as opened:
            beginning = opened.read(_BEGINNING_BYTES).decode(errors="replace")
        yield from beginning.splitlines()
        if file.blob.size_bytes > _BEGINNING_BYTES:
            yield f"… ({size(file.blob.size_bytes - _BEGINNING_BYTES)} more)"


def _images(waiting: Waiting) -> list[str]:
    from runnel.common.tasks import task_spec

    # It has run, so it was read before.
    return [each.image for each in task_spec(waiting.held.order.spec, source="the network").executors]


def _since(waiting: Waiting) -> datetime:
    return datetime.fromtimestamp(waiting.held.received_ms / 1000, UTC)
