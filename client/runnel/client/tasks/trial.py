"""A task on the researcher's own machine: the script alone, or its image in the local engine, as at a site."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runnel.client.audit import AuditLog, utc_now
from runnel.client.data import DatabaseConfig, select
from runnel.client.domain.policy import ANYTHING
from runnel.client.tasks.output_zip import write_zip
from runnel.client.tasks.plain import PAYLOAD_NAME
from runnel.client.tasks.site_graph import site_tasks
from runnel.client.tasks.task_engine import EngineSettings
from runnel.common.blobs import Source, in_thread
from runnel.common.errors import InvalidInput, NotFound
from runnel.common.protocol import BlobRef, RunState, TaskNews, TaskOrder
from runnel.common.tasks import Selection, TaskSpec

NAME = "trial"
"""Name of the site that this machine is for a while."""

_MOST_BYTES, _MOST_FILES = 1 << 40, 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of it: ``exit_code`` None: nothing was started. ``failure`` empty: it did what it should."""

    exit_code: int | None
    failure: str
    files: tuple[Path, ...]


def try_script(
    script: Path,
    arguments: Sequence[str],
    *,
    databases: Mapping[str, DatabaseConfig],
    selections: Sequence[Selection],
    payload: bytes | None,
    variables: Mapping[str, str],
    output: Path,
) -> Tried:
    """Run a script in this Python with the folders and variables of the plain contract, and no walls around it. Blocks.

    Args:
        script: a Python program.
        arguments: for it.
        databases: of this machine, by label.
        selections: of them.
        payload: the input.
        variables: further ones.
        output: new folder for ``stdout``, ``stderr`` and ``output.zip``.

    Raises:
        NotFound: there is no such script.
        RunnelError: a selection can't be had.
    """
    if not script.is_file():
        raise NotFound(f"There is no script {script}.", path=str(script))
    _new(output)
    with tempfile.TemporaryDirectory(prefix="runnel-try-") as folder:
        given, out = Path(folder) / "input", Path(folder) / "output"
        given.mkdir()
        out.mkdir()
        select(selections, databases, given)
        if payload is not None:
            (given / PAYLOAD_NAME).write_bytes(payload)
        env = {
            **os.environ,
            **variables,
            "CA_INPUT_FOLDER": str(given),
            "CA_OUTPUT_FOLDER": str(out),
            "CA_CONFIG_FOLDER": str(script.parent.absolute()),
            "INPUT_PATH": str(given),
        }
        argv = [sys.executable, str(script.absolute()), *arguments]
        with (output / "stdout").open("wb") as said, (output / "stderr").open("wb") as complained:
            ended = subprocess.run(
                argv, env=env, cwd=out, stdin=subprocess.DEVNULL, stdout=said, stderr=complained, check=False
            )
        target = output / "output.zip"
        write_zip(target, [(out, "", "")], most_bytes=_MOST_BYTES, most_files=_MOST_FILES)
    status = ended.returncode
    failure = f"{script.name} ended with the status {status}." if status else ""
    return Tried(exit_code=status, failure=failure, files=_files(output))


async def try_image(
    spec: TaskSpec,
    *,
    databases: Mapping[str, DatabaseConfig],
    output: Path,
    say: Callable[[str], None],
    docker_host: str | None = None,
) -> Tried:
    """Run a task in the local engine with a site's own code: the same folders, the same cage, the same results.

    Args:
        spec: what would be sent to sites.
        databases: of this machine, by label.
        output: new folder for the result files.
        say: takes what is told meanwhile.
        docker_host: address of the engine; None: ``DOCKER_HOST``, or the usual socket.
    """
    await in_thread(_new, output)
    with tempfile.TemporaryDirectory(prefix="runnel-try-") as folder:
        state = Path(folder)
        here = _Here(output, say)
        tasks = await in_thread(
            site_tasks,
            here,
            name=NAME,
            state=state,
            engine=EngineSettings(client=NAME, state=state, environ=os.environ, host=docker_host, files=None),
            policy=lambda: ANYTHING,
            audit=AuditLog(state / "audit.jsonl"),
            parallel=1,
            databases=databases,
            variables={},
            settings={},
            time_s=None,
            clock=utc_now,
        )
        async with tasks:
            tasks.received(
                TaskOrder(
                    run_id="run-trial",
                    client=NAME,
                    task_id="tsk-trial",
                    organisation=NAME,
                    user=NAME,
                    spec=spec.as_json(),
                )
            )
            news = await here.ended
    assert news.result is not None
    for file in news.result.files:
        suffix = ".zip" if file.media_type == "application/zip" else ""
        await in_thread((output / file.blob.sha256).replace, output / f"{file.name}{suffix}")
    failure = "" if news.result.failure is None else news.result.failure.message
    return Tried(exit_code=news.result.exit_code, failure=failure, files=_files(output))


class _Here:
    """The way up of a run, where the network is this machine: results are copied to a folder by their digest."""

    def __init__(self, output: Path, say: Callable[[str], None]) -> None:
        self._output = output
        self._say = say
        self.ended: asyncio.Future[TaskNews] = asyncio.get_running_loop().create_future()

    @property
    def attached(self) -> bool:
        return True

    def send(self, message: TaskNews) -> bool:
        if message.result is not None and not self.ended.done():
            self.ended.set_result(message)
        elif message.state in (RunState.PREPARING, RunState.RUNNING) and not message.lines:
            self._say(f"{message.state.value} {message.detail}".rstrip())
        return self.offer(message)

    def offer(self, message: TaskNews) -> bool:
        for line in message.lines:
            self._say(f"{line.stream}: {line.text}")
        return True

    def leave(self) -> None:
        pass

    async def push(self, order_id: str, source: Source, ref: BlobRef, *, deadline_s: float) -> None:
        assert isinstance(source, Path)
        await in_thread(shutil.copyfile, source, self._output / ref.sha256)

    async def fetch(self, ref: BlobRef, target: Path, *, deadline_s: float) -> None:
        raise InvalidInput("A trial has no stored files; what it needs comes within its description.")


def _new(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise InvalidInput(f"The folder {output} is not empty.", hint="Name a new one by --output.")


def _files(output: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in output.iterdir() if path.is_file()))
