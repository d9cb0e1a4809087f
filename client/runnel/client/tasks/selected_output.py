"""What runs select of their site's data: for their containers or, where a task runs nothing, to be given out."""

from __future__ import annotations

from pathlib import Path

from runnel.client.audit import AuditLog
from runnel.client.elapsed import timed
from runnel.client.tasks.book import Ended
from runnel.client.tasks.contract import INPUT, Produced
from runnel.client.tasks.output_zip import write_zip
from runnel.client.tasks.site_facts import SiteFacts
from runnel.client.tasks.under_way import UnderWay, recorded
from runnel.common.blobs import in_thread
from runnel.common.errors import InvalidInput
from runnel.common.protocol import RunState

OUTPUT = "output"
"""Name of the one result: a ZIP archive with a CSV file for each selected table."""


async def select(run: UnderWay, site: SiteFacts) -> None:
    """Put what a run selects into its folder :data:`~.contract.INPUT`, which is made.

    Raises:
        InvalidInput: this site has no data to select from.
        RunnelError: as :class:`.site_facts.Selector` says.
    """
    target = run.folder / INPUT
    target.mkdir()
    if not run.spec.selections:
        return
    if site.selector is None:
        raise InvalidInput(f"{site.name} has no databases that could be selected from.")
    run.voice.state(RunState.PREPARING, "selecting")
    await site.selector(run.spec.selections, target, minimum_rows=run.rules.minimum_rows)


async def select_out(run: UnderWay, site: SiteFacts, audit: AuditLog) -> Ended:
    """Give out what a run selects that runs nothing; the policy lets it, or this is not reached.

    Raises:
        BadOutput: it is more than the site lets out.
        RunnelError: as :func:`select`.
        StorageFull: no room.
    """
    async with recorded(audit, run, {"selects": True}) as outcome:
        with timed(run.elapsed_s, "select"):
            await select(run, site)
        most_files = run.rules.limits.output_files
        produced = [await in_thread(_packed, run.folder, most_bytes=run.output_bytes, most_files=most_files)]
        await outcome.finished(produced)
    return Ended(produced=produced, reviewed=run.rules.review)


def _packed(folder: Path, *, most_bytes: int, most_files: int) -> Produced:
    target = folder / "selected-output.zip"
    write_zip(target, [(folder / INPUT, "", "")], most_bytes=most_bytes, most_files=most_files)
    return Produced(name=OUTPUT, media_type="application/zip", path=target)
