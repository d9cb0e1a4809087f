"""A whole network in one process for tests: real gRPC and HTTP on the loopback, entry points as real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from runnel.client.app import run_client
from runnel.client.audit import utc_now
from runnel.client.settings import ClientSettings
from runnel.combiner.app import serve_combiner
from runnel.combiner.combiner import Combiner
from runnel.combiner.settings import CombinerSettings
from runnel.common.tensors import write_npz
from runnel.compute_package import pack
from runnel.reducer.app import ReducerServer, serve_reducer
from runnel.reducer.settings import ReducerSettings
from tests.doubles import reducer_state
from tests.eventually import eventually

ADD_CONSTANT = """
import json, os, sys
import numpy as np

model_in, model_out = sys.argv[1:3]
with np.load(model_in) as model:
    arrays = {name: model[name] for name in model.files}
step = float(open(os.environ["RUNNEL_DATA"]).read())
np.savez(model_out, **{name: (array + step).astype(array.dtype) for name, array in arrays.items()})
with open(model_out + "-metadata", "w") as file:
    json.dump({"num_examples": WEIGHT, "step": step}, file)
"""

MEAN_OF_MODEL = """
import json, sys
import numpy as np

with np.load(sys.argv[1]) as model:
    value = float(np.mean([np.mean(model[name]) for name in model.files]))
with open(sys.argv[2], "w") as file:
    json.dump({"mean": value, "note": "text is kept"}, file)
"""


class LocalNetwork:
    """A reducer with combiners and clients, all in this process; an async context manager.

    Args:
        folder: of all state.
        reducer: settings that differ from the defaults of a test.
    """

    def __init__(self, folder: Path, **reducer: Any) -> None:
        self.folder = folder
        self._reducer_settings = reducer
        self._stack = contextlib.AsyncExitStack()
        self._parts: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self.combiners: dict[str, Combiner] = {}
        self.reducer: ReducerServer
        self.http: httpx.AsyncClient

    async def __aenter__(self) -> LocalNetwork:
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        await self.start_reducer()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in reversed([name for name in self._parts if name != "reducer"]):
            await self.stop(name)
        await self.stop("reducer")
        await self._stack.__aexit__(kind, error, trace)

    # ---- parts

    async def start_reducer(self) -> None:
        ready: asyncio.Future[ReducerServer] = asyncio.get_running_loop().create_future()
        settings = ReducerSettings(
            **{
                "rpc": "127.0.0.1:0",
                "http": "127.0.0.1:0",
                "state": self.folder / "reducer",
                "database": reducer_state.url_in(self.folder / "reducer"),
                "insecure": True,
                "heartbeat_s": 2.0,
            }
            | self._reducer_settings
        )

        async def serve(stop: asyncio.Event) -> None:
            async with serve_reducer(settings) as server:
                ready.set_result(server)
                await stop.wait()

        self._start("reducer", serve)
        self.reducer = await self._ready("reducer", ready)
        # The same ports after a restart, as in life.
        self._reducer_settings |= {"rpc": self.reducer.rpc_address, "http": self.reducer.http_address}
        self.http = httpx.AsyncClient(base_url=f"{self.reducer.url}/api/v1", timeout=30)
        self._stack.push_async_callback(self.http.aclose)

    async def start_combiner(self, name: str, **settings: Any) -> Combiner:
        ready: asyncio.Future[Combiner] = asyncio.get_running_loop().create_future()
        wanted = CombinerSettings(
            **{
                "network": self.reducer.rpc_address,
                "listen": "127.0.0.1:0",
                "state": self.folder / name,
                "name": name,
                "insecure": True,
                "heartbeat_s": 2.0,
            }
            | settings
        )

        async def serve(stop: asyncio.Event) -> None:
            async with serve_combiner(wanted) as (combiner, _), asyncio.TaskGroup() as group:
                way_up = group.create_task(combiner.run())
                ready.set_result(combiner)
                await stop.wait()
                way_up.cancel()

        self._start(name, serve)
        self.combiners[name] = await self._ready(name, ready)
        await self.until_attached(name)
        return self.combiners[name]

    async def start_client(
        self,
        name: str,
        *,
        step: float = 1.0,
        wait: bool = True,
        clock: Callable[[], datetime] = utc_now,
        **settings: Any,
    ) -> None:
        data = self.folder / f"{name}.txt"
        data.write_text(str(step))
        wanted = ClientSettings(
            **{
                "network": self.reducer.rpc_address,
                "state": self.folder / name,
                "name": name,
                "data": {"default": str(data)},
                "insecure": True,
                "warm": False,  # for a round or two it takes longer
            }
            | settings
        )
        self._start(name, lambda stop: run_client(wanted, stop, os.environ, clock=clock))
        if wait:
            await self.until_attached(name)

    def _start(self, name: str, serve: Any) -> None:
        stop = asyncio.Event()
        self._parts[name] = (self._group.create_task(serve(stop), name=name), stop)

    async def _ready(self, name: str, ready: asyncio.Future[Any]) -> Any:
        task, _ = self._parts[name]
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        return await ready

    async def stop(self, name: str) -> None:
        task, stop = self._parts.pop(name)
        stop.set()
        await task

    async def until_attached(self, *names: str, timeout_s: float = 20.0) -> None:
        find = self.reducer.engine.roster.find
        await eventually(lambda: all(find(name) is not None for name in names), timeout_s=timeout_s)

    # ---- what people do

    async def push_package(self, folder: Path) -> str:
        packed = await asyncio.to_thread(pack, folder, self.folder / f"{folder.name}.tar.gz")
        answer = await self.http.post("/packages", params={"filename": "p.tar.gz"}, content=packed.path.read_bytes())
        answer.raise_for_status()
        return str(answer.json()["digest"])

    async def push_model(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
        path = self.folder / "seed.npz"
        write_npz(path, arrays)
        answer = await self.http.post("/models", content=path.read_bytes())
        answer.raise_for_status()
        return str(answer.json()["model"])

    async def start_session(self, package: str, seed: str, **config: Any) -> str:
        answer = await self.http.post("/sessions", json={"package": package, "seed": seed} | config)
        assert answer.status_code < 300, answer.text
        return str(answer.json()["session"])

    async def session(self, session: str, *, clients: bool = False) -> dict[str, Any]:
        answer = await self.http.get(f"/sessions/{session}", params={"clients": clients})
        answer.raise_for_status()
        return dict(answer.json())

    async def until_ended(self, session: str, timeout_s: float = 60.0) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            while True:
                view = await self.session(session)
                if view["status"] != "running":
                    return view
                await asyncio.sleep(0.05)

    async def until_round(self, session: str, number: int, timeout_s: float = 60.0) -> None:
        """Wait until a round is committed."""
        async with asyncio.timeout(timeout_s):
            while True:
                view = await self.session(session)
                assert view["status"] != "failed", view["reason"]
                if any(r["round"] >= number and r["seconds"] is not None for r in view["rounds"]):
                    return
                await asyncio.sleep(0.02)

    async def model(self, model: str) -> dict[str, np.ndarray[Any, Any]]:
        answer = await self.http.get(f"/models/{model}/content")
        answer.raise_for_status()
        path = self.folder / "got.npz"
        path.write_bytes(answer.content)
        with np.load(path) as loaded:
            return {name: loaded[name] for name in loaded.files}


def write_package(folder: Path, *, train: str = ADD_CONSTANT, validate: str = MEAN_OF_MODEL, weight: str = "1") -> Path:
    """Write a package of two scripts; ``weight`` is a Python expression."""
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(train.replace("WEIGHT", weight))
    (folder / "validate.py").write_text(validate)
    return folder


@contextlib.asynccontextmanager
async def network(folder: Path, combiners: int = 1, clients: int = 2, **reducer: Any) -> AsyncIterator[LocalNetwork]:
    """Start a network of ``combiners`` (c1 …) and ``clients`` (site-1 …, which add 1, 2, …)."""
    async with LocalNetwork(folder, **reducer) as running:
        for number in range(1, combiners + 1):
            await running.start_combiner(f"c{number}")
        await asyncio.gather(*(running.start_client(f"site-{n}", step=float(n)) for n in range(1, clients + 1)))
        yield running
