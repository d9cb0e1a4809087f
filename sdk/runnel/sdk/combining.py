"""What the sites of a task gave, put together on the researcher's machine."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runnel.common.errors import EntryPointFailed, InvalidInput

SITE_COLUMN = "site"
"""First column of a table of all sites: whose row it is."""

SITES_VARIABLE = "RUNNEL_SITES"
"""Variable in which a combining script finds what became of each site, as JSON."""

_CELL = 1 << 20  # characters; the csv module's own limit is smaller than some texts


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePart:
    """What one site gave: ``folder`` has its files; None: it gave nothing, and ``failure`` says why."""

    site: str
    state: str
    folder: Path | None = None
    failure: str = ""


def put_together(parts: Sequence[SitePart], target: Path) -> list[Path]:
    """Write each CSV file that sites have under the same name once for all of them, and return what was written.

    A first column tells the site. Columns are those of all sites, in the order in which they first come; where a site
    has one not, its rows are empty there. Rows of a site stay in their order, sites in that of ``parts``.

    Args:
        parts: of the sites; those without files are left out.
        target: folder of what is written, made if it does not exist.

    Raises:
        InvalidInput: a file is no CSV in UTF-8 with a header, or has a column of that name already; it is named.
    """
    folders = [(part.site, part.folder) for part in parts if part.folder is not None]
    names = sorted({path.relative_to(folder) for _, folder in folders for path in folder.rglob("*.csv")})
    written = []
    for name in names:
        tables = [(site, folder / name) for site, folder in folders if (folder / name).is_file()]
        columns = list(dict.fromkeys(column for site, path in tables for column in _header(site, path)))
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, [SITE_COLUMN, *columns], restval="")
            out.writeheader()
            for site, path in tables:
                out.writerows({SITE_COLUMN: site, **row} for row in _rows(site, path))
        written.append(place)
    return written


def run_script(script: Path, parts: Sequence[SitePart], target: Path) -> None:
    """Run a researcher's script over what the sites gave: ``python SCRIPT TARGET``, in this interpreter's Python.

    Its variable RUNNEL_SITES is a JSON object: by site ``{"state", "folder", "failure"}``, where ``folder`` is null for
    a site that gave nothing. It reads and writes where it likes, as any program of the researcher's.

    Raises:
        InvalidInput: there is no such script.
        EntryPointFailed: it ended with a status other than 0.
    """
    if not script.is_file():
        raise InvalidInput(f"There is no script {script} that could combine the results.")
    told = {
        part.site: {
            "state": part.state,
            "folder": None if part.folder is None else str(part.folder.absolute()),
            "failure": part.failure,
        }
        for part in parts
    }
    env = os.environ | {SITES_VARIABLE: json.dumps(told)}
    status = subprocess.run([sys.executable, script, target], env=env, check=False).returncode
    if status:
        raise EntryPointFailed(
            f"{script} ended with status {status}; what the sites gave is in {target}.", exit_status=status
        )


def _header(site: str, path: Path) -> list[str]:
    header = next(_lines(site, path), [])
    if not header or SITE_COLUMN in header or len(set(header)) != len(header):
        raise InvalidInput(
            f"{path.name} of {site} begins with {', '.join(map(repr, header)) or 'nothing'}; expected are the names of"
            f" its columns, all different, and none of them {SITE_COLUMN!r}, which tells the site in the table of all.",
            file=str(path),
        )
    return header


def _rows(site: str, path: Path) -> Iterator[dict[str, str]]:
    lines = _lines(site, path)
    header = next(lines, [])
    for number, line in enumerate(lines, start=1):
        if not line:
            continue  # an empty line, which some programs end their files with
        if len(line) != len(header):
            raise InvalidInput(
                f"Row {number:,} of {path.name} of {site} has {len(line)} values for {len(header)} columns.",
                file=str(path),
            )
        yield dict(zip(header, line, strict=True))


def _lines(site: str, path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(_CELL)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.reader(file, strict=True)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} of {site} is no CSV in UTF-8: {error}.", file=str(path)) from error
