"""A network of real processes for tests: started, killed and started again by the command that people use."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from runnel.common.endpoints import read_endpoints
from runnel.common.errors import NotFound, RunnelError
from runnel.compute_package import pack
from runnel.sdk import Network
from tests.eventually import eventually_blocking
from tests.lasting_port import lasting_port
from tests.process.forked_process import RUNNEL, ForkedProcess, start_runnel

START_S = 60.0
VALIDATE = "import json, sys; json.dump({'loss': 1}, open(sys.argv[2], 'w'))"


class Component:
    """One process and how to start it again."""

    def __init__(self, name: str, arguments: list[str], state: Path, log: IO[bytes]) -> None:
        self.name = name
        self.arguments = arguments
        self.state = state
        self.log = log
        self.process: subprocess.Popen[bytes] | ForkedProcess | None = None


class ProcessNetwork:
    """Components as processes below ``folder``; a context manager that leaves none of them behind.

    They are forks of a process that has imported everything, unless ``by_exec``: for tests of what a process holds or
    has loaded, and of how others see it.
    """

    by_exec = False

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("RUNNEL_")} | environ
        self.components: dict[str, Component] = {}
        self._sdk: Network | None = None
        self._coming_up: list[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sdk is not None:
            self._sdk.close()
        for component in self.components.values():
            if component.process is not None:
                component.process.kill()
        for component in self.components.values():
            if component.process is not None:
                component.process.wait()
            component.log.close()
        if kind is not None:
            for component in self.components.values():
                print(f"---- {component.name}")
                print("\n".join(self.log_of(component.name).splitlines()[-30:]))

    # ---- starting and ending

    def start_reducer(self, *more: str, **environ: str) -> None:
        # The same addresses at each further start, as in life; nobody else gets them meanwhile.
        rpc, http = (f"127.0.0.1:{lasting_port()}" for _ in range(2))
        self._add("reducer", ["reducer", "--rpc", rpc, "--http", http, "--insecure", *more], **environ)
        endpoints = read_endpoints(self.folder / "reducer")
        self.rpc, self.http = str(endpoints.rpc), str(endpoints.http)
        self._sdk = Network(f"http://{self.http}")

    def start_combiner(self, name: str, *more: str, **environ: str) -> None:
        arguments = ["combiner", "--network", self.rpc, "--listen", "127.0.0.1:0", "--name", name, "--insecure", *more]
        self._add(name, arguments, **environ)

    def start_client(self, name: str, data: Path, *more: str, **environ: str) -> None:
        arguments = ["client", "--network", self.rpc, "--name", name, "--data", f"default={data}", "--insecure", *more]
        self._add(name, arguments, **environ)

    def _add(self, name: str, arguments: list[str], **environ: str) -> None:
        state = self.folder / name
        log = (self.folder / f"{name}.log").open("ab")
        self.components[name] = Component(name, [*arguments, "--state", str(state)], state, log)
        self.launch(name, **environ)
        if self._coming_up is None:
            self.until_ready(name)
        else:
            self._coming_up.append(name)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let what is started in this block come up side by side; behind it all are ready."""
        self._coming_up = []
        try:
            yield
            for name in self._coming_up:
                self.until_ready(name)
        finally:
            self._coming_up = None

    def build_package(self, train: str, validate: str = VALIDATE) -> Path:
        """Make a package of these two scripts; return its archive."""
        folder = self.folder / "package"
        folder.mkdir()
        (folder / "train.py").write_text(train)
        (folder / "validate.py").write_text(validate)
        return pack(folder, self.folder / "package.tar.gz").path

    def launch(self, name: str, **environ: str) -> None:
        component = self.components[name]
        env, log = self._environ | environ, component.log
        if not self.by_exec:
            component.process = start_runnel(component.arguments, env=env, stdout=log, stderr=log)
            return
        component.process = subprocess.Popen(
            [*self.command(name), *component.arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def command(self, name: str) -> list[str]:
        """Return what starts a component by exec, up to its arguments."""
        return [*RUNNEL]

    def until_ready(self, name: str) -> None:
        component = self.components[name]

        def ready() -> bool:
            assert component.process is not None
            if component.process.poll() is not None:
                raise RuntimeError(f"{name} has ended: {self.log_of(name)}")  # not to be waited for any longer
            try:
                return read_endpoints(component.state).pid == component.process.pid
            except NotFound:
                return False

        eventually_blocking(ready, timeout_s=START_S)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        process = self.process(name)
        process.send_signal(number)
        return process.wait(START_S)

    def until_dead(self, name: str, timeout_s: float) -> int:
        return self.process(name).wait(timeout_s)

    def process(self, name: str) -> subprocess.Popen[bytes] | ForkedProcess:
        process = self.components[name].process
        assert process is not None
        return process

    def log_of(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    # ---- asking

    @property
    def sdk(self) -> Network:
        assert self._sdk is not None
        return self._sdk

    def until_attached(self, *names: str, timeout_s: float = START_S) -> None:
        def there() -> bool:
            attached = {node.name for node in self.sdk.nodes.list() if node.status == "attached"}
            return set(names) <= attached

        eventually_blocking(there, timeout_s=timeout_s)

    def until_ended(self, session: str, timeout_s: float = 60.0) -> dict[str, object]:
        """Poll, also while the reducer is away; return the session's JSON."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                view = self.sdk.sessions.show(session)
                if view.status != "running":
                    return dict(view.raw)
            except RunnelError:
                pass  # the reducer is starting again
            assert time.monotonic() < deadline, f"session {session} still runs"
            time.sleep(0.1)
