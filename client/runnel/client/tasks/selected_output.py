"""Runs of tasks that run nothing: what was selected is what they give out."""

from __future__ import annotations

from pathlib import Path

from runnel.client.tasks.contract import INPUT, Produced
from runnel.client.tasks.output_zip import write_zip

OUTPUT = "output"
"""Name of the one result: a ZIP archive with a CSV file for each selected table."""


def selected_output(folder: Path, *, most_bytes: int, most_files: int) -> Produced:
    """Put the files that the selections of a run filled in ``folder`` into its result. Blocks.

    Raises:
        BadOutput: it is more than the site lets out.
        StorageFull: no room.
    """
    target = folder / "selected-output.zip"
    write_zip(target, [(folder / INPUT, "", "")], most_bytes=most_bytes, most_files=most_files)
    return Produced(name=OUTPUT, media_type="application/zip", path=target)
