"""What the sites of a task gave, put together on the researcher's machine."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runnel.common.errors import EntryPointFailed, InvalidInput, NotEnoughClients
from runnel.common.ids import valid_name
from runnel.sdk.task_values import Run, Task

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteResults:
    """What became of a task: ``done`` are the runs that did what they should, ``failed`` says why the others did not.

    Both are by site, in the order of the task's sites.
    """

    task: Task
    done: Mapping[str, Run]
    failed: Mapping[str, str]

    def json(self, path: str) -> dict[str, Any]:
        """Return by site what a file of its output holds as JSON.

        Raises:
            InvalidInput: a site has no such file, or it is no JSON.
        """
        found = {}
        with tempfile.TemporaryDirectory(prefix="runnel-") as folder:
            for part in self.save(folder):
                if part.folder is None:
                    continue
                try:
                    found[part.site] = json.loads((part.folder / path).read_bytes())
                except OSError as error:
                    raise InvalidInput(f"The output of {part.site} has no file {path}.", site=part.site) from error
                except ValueError as error:
                    raise InvalidInput(f"{path} of {part.site} is no JSON: {error}.", site=part.site) from error
        return found

    def save(self, folder: str | Path) -> list[SitePart]:
        """Unpack each site's output into the folder of its name below ``folder``; return what became of each site."""
        parts = []
        for run in self.task.runs:
            place = run.unpack(Path(folder) / valid_name(run.site)) if run.site in self.done else None
            failure = self.failed.get(run.site, "")
            parts.append(SitePart(site=run.site, state=run.state, folder=place, failure=failure))
        return parts


def site_results(task: Task, minimum: int | None) -> SiteResults:
    """Return what became of a task that has ended.

    Args:
        task: with its runs.
        minimum: how many sites have to be done; None: all.

    Raises:
        NotEnoughClients: fewer are; it says why each of the others is not.
    """
    done = {run.site: run for run in task.runs if run.done}
    failed = {run.site: run.error or run.state for run in task.runs if not run.done}
    if len(done) < (len(task.runs) if minimum is None else minimum):
        told = " ".join(f"{site}: {why}" for site, why in failed.items())
        raise NotEnoughClients(
            f"{len(done)} of {len(task.runs)} sites of {task.task} are done; needed are"
            f" {'all' if minimum is None else minimum}. {told}",
            hint="`runnel task logs` shows what they wrote.",
            task=task.task,
        )
    return SiteResults(task=task, done=done, failed=failed)


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
