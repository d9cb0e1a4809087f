"""What a container for each run costs, beside one that stays and takes each run by ``exec``, and beside processes.

The script does nothing, so that all that is measured is beside it. Needs a Docker engine (``DOCKER_HOST``) and an image
that it has and that has ``python3`` (``RUNNEL_BENCH_IMAGE``).

    python -m benchmarks.containers [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from aiodocker.containers import DockerContainer

from benchmarks.figures import Result, figure, run_alone
from runnel.client.domain import Cage
from runnel.client.domain.cage import NOBODY
from runnel.client.runtimes import Call, Limits, PackageFiles, ProcessRuntime, Runtime
from runnel.client.runtimes.docker import DockerRuntime
from runnel.client.runtimes.docker_container import container_config
from runnel.client.runtimes.docker_engine import Engine
from runnel.client.runtimes.docker_files import FileSharing
from runnel.compute_package import read_manifest

IMAGE = "RUNNEL_BENCH_IMAGE"
_CLIENT = "benchmark"
_STAYING = NOBODY - 1


async def measure(quick: bool) -> Result:
    """Measure single runs, one of each kind in turn, after once each."""
    image = os.environ.get(IMAGE, "")
    if not image:
        sys.exit(f"Name an image of the engine that has python3: {IMAGE}=…")
    runs = 3 if quick else 40
    took: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="runnel-bench-") as work:
        folder = Path(work)
        async with AsyncExitStack() as stack:
            kinds = await _kinds(stack, folder, image)
            for _ in range(runs + 1):
                for name, run in kinds.items():
                    began = time.perf_counter()
                    await run()
                    took.setdefault(name, []).append(1e3 * (time.perf_counter() - began))
    figures = [figure(name, "ms", each[1:]) for name, each in took.items()]
    return Result(benchmark="containers", parameters={"runs": runs, "image": image}, figures=figures)


async def _kinds(stack: AsyncExitStack, folder: Path, image: str) -> dict[str, Callable[[], Awaitable[object]]]:
    package, work = folder / "package", folder / "run"
    package.mkdir()
    work.mkdir()
    (package / "train.py").write_text("pass\n")
    files = PackageFiles(digest="0" * 64, root=package, manifest=read_manifest(package))
    environ = {name: os.environ[name] for name in ("PATH", "DOCKER_HOST") if name in os.environ}

    async def of(runtime: Runtime) -> Callable[[], Awaitable[object]]:
        prepared = await runtime.prepare(files, lambda stream, text: None)
        call = Call(entry_point="train", arguments=(), workdir=work, env={})
        return lambda: runtime.run(prepared, call, lambda stream, text: None)

    cold = await stack.enter_async_context(ProcessRuntime(environments=folder / "e", environ=environ))
    warm = await stack.enter_async_context(ProcessRuntime(environments=folder / "e", environ=environ, warm=True))
    kinds = {"a process": await of(cold), "a warm process": await of(warm)}
    for sharing in FileSharing:
        runtime = DockerRuntime(
            client=f"{_CLIENT}-{sharing.value}", state=folder, environ=environ, base_image=image, sharing=sharing
        )
        kinds[f"a container, files by {sharing.value}"] = await of(await stack.enter_async_context(runtime))
    engine = await stack.enter_async_context(Engine(None, environ))
    staying = await _staying(stack, engine, image)
    kinds["an exec in a container that stays"] = lambda: _exec(staying)
    return kinds


async def _staying(stack: AsyncExitStack, engine: Engine, image: str) -> DockerContainer:
    config = container_config(
        image=image,
        argv=["/bin/sh", "-c", "read -r end"],
        env={},
        folder="/",
        mounts=[],
        cage=Cage(),
        # Another's than the runs', for what ends these would end it too.
        owner=(_STAYING, _STAYING),
        limits=Limits(),
        cpus=engine.facts.cpus,
        labels={},
    )
    container = await engine.docker.containers.create(config | {"OpenStdin": True})
    stack.push_async_callback(container.delete, force=True)
    await container.start()
    return container


async def _exec(container: DockerContainer) -> None:
    """Run it and end what it left: nothing of a run may stay, here as in a container of its own."""
    for argv in (["python3", "-c", "pass"], ["/bin/sh", "-c", "kill -9 -1"]):
        made = await container.exec(argv, stdout=True, stderr=True, user=f"{NOBODY}:{NOBODY}")
        async with made.start(detach=False) as stream:
            while await stream.read_out() is not None:
                pass
        await made.inspect()


if __name__ == "__main__":
    asyncio.run(run_alone(__doc__, measure))
