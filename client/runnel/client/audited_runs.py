"""Runs of entry points that are in the site's audit log, each before it begins."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path

from runnel.client.audit import AuditLog
from runnel.client.runtimes import Call, Finished, LineSink, PackageFiles, Prepared, Runtime
from runnel.common.blobs import in_thread
from runnel.common.errors import RunnelError
from runnel.common.ids import new_id


class AuditedRuns:
    """A :class:`~runnel.client.runtimes.Runtime` whose every run is written down: ``run.started``, ``run.ended``.

    Nothing runs before the first of these is on the disk. A start without an end is a run in which the client was
    killed. ``bytes_out`` of the end counts what the run made for the network: its output file with metadata, before any
    compression, and its lines.

    Args:
        runtime: where they run.
        audit: the site's log.
        about: what is said of each run: who asked, for which package, with which databases.
    """

    def __init__(self, runtime: Runtime, audit: AuditLog, about: Mapping[str, object]) -> None:
        self._runtime = runtime
        self._audit = audit
        self._about = about

    async def prepare(self, package: PackageFiles, say: LineSink) -> Prepared:
        """See :meth:`Runtime.prepare`."""
        return await self._runtime.prepare(package, say)

    async def run(self, prepared: Prepared, call: Call, say: LineSink) -> Finished:
        """Write down the start, run, write down the end; see :meth:`Runtime.run`.

        Raises:
            CorruptData, StorageFull: the log can't be written, and nothing ran.
        """
        run = new_id("run")
        lines_bytes = 0

        def counted(stream: str, text: str) -> None:
            nonlocal lines_bytes
            lines_bytes += len(text.encode("utf-8", "replace")) + 1
            say(stream, text)

        begin = dict(self._about) | {"run": run, "entry_point": call.entry_point}
        await in_thread(self._audit.append, "run.started", begin)
        since, end = time.monotonic(), "killed"
        status: int | None = None
        try:
            finished = await self._runtime.run(prepared, call, counted)
            status, end = finished.exit_status, "finished"
        except asyncio.CancelledError:
            end = "called off"
            raise
        except RunnelError as error:
            end = error.code
            status = error.fields.get("exit_status")
            raise
        finally:
            note = {"run": run, "end": end, "exit_status": status, "elapsed_s": round(time.monotonic() - since, 3)}
            # Here and not in a thread: it does not wait for the disk, and takes less than the way to a thread and back.
            self._ended(note, call, lines_bytes)
        return finished

    def _ended(self, note: Mapping[str, object], call: Call, lines_bytes: int) -> None:
        # The next start of a run waits for the disk, and for this with it.
        out = lines_bytes + _output_bytes(call)
        self._audit.append("run.ended", {**note, "bytes_out": out}, durable=False)


def _output_bytes(call: Call) -> int:
    if not call.arguments:
        return 0
    output = call.arguments[-1]
    return sum(_size(Path(path)) for path in (output, f"{output}-metadata"))


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:  # it was not written, which is an error of the run where it has to be
        return 0
