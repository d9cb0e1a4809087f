"""A network of processes behind faulty proxies: two before the reducer and two before each combiner."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import TracebackType

from runnel.common.endpoints import read_endpoints
from tests.chaos.proxy import Fault, FaultyProxy, Way
from tests.lasting_port import lasting_port
from tests.process.process_network import ProcessNetwork


class FaultyPorts:
    """Proxies before both ports of a node, for gRPC and for large blobs; what is done here is done to both.

    A context manager. The port of blobs is the same whenever the node starts again; ``target`` is that of gRPC.
    """

    def __init__(self) -> None:
        self.cuts = 0  # how many cuts of both that were asked for have happened
        self._cut_at: dict[Way, int] = {}
        self._lock = threading.Lock()  # each proxy has a thread
        self.rpc = FaultyProxy(on_moved=self._look)
        self.blobs = FaultyProxy(f"127.0.0.1:{lasting_port()}", on_moved=self._look)

    def __enter__(self) -> FaultyPorts:
        self.rpc.__enter__()
        self.blobs.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cut_at.clear()
        self.rpc.__exit__(kind, error, trace)
        self.blobs.__exit__(kind, error, trace)

    @property
    def address(self) -> str:
        return self.rpc.address

    @property
    def environ(self) -> dict[str, str]:
        """What the node is started with, so that its blobs go through the proxy."""
        own, told = (address.rpartition(":")[2] for address in (self.blobs.target, self.blobs.address))
        return {"RUNNEL_BLOB_PORT": own, "RUNNEL_ADVERTISE_BLOB_PORT": told}

    @property
    def moved(self) -> dict[Way, int]:
        """Bytes so far through both."""
        return {way: self.rpc.moved[way] + self.blobs.moved[way] for way in Way}

    def inflict(self, fault: Fault) -> None:
        self.rpc.inflict(fault)
        self.blobs.inflict(fault)

    def cut_after(self, way: Way, size: int) -> None:
        """Reset all connections of both once when so many more bytes have gone this way, whichever they took."""
        self._cut_at[way] = self.moved[way] + size

    def _look(self, way: Way) -> None:
        with self._lock:
            if self.moved[way] < self._cut_at.get(way, sys.maxsize):
                return
            del self._cut_at[way]
            self.cuts += 1
        self.rpc.reset()
        self.blobs.reset()


class ProxiedNetwork(ProcessNetwork):
    """``proxies`` has those before each node that serves others, by its name."""

    def __init__(self, folder: Path, **environ: str) -> None:
        super().__init__(folder, **environ)
        self.proxies: dict[str, FaultyPorts] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for ports in self.proxies.values():
            ports.__exit__(None, None, None)

    def start_reducer(self, *more: str, **environ: str) -> None:
        ports = self._proxied("reducer")
        super().start_reducer(*more, **environ)
        ports.rpc.target, self.rpc = self.rpc, ports.address

    def start_combiner(self, name: str, *more: str, **environ: str) -> None:
        ports = self._proxied(name)
        super().start_combiner(name, "--advertise", ports.address, *more, **environ)
        self._follow(name)

    def launch(self, name: str, **environ: str) -> None:
        super().launch(name, **((self.proxies[name].environ if name in self.proxies else {}) | environ))

    def relaunch(self, name: str, **environ: str) -> None:
        """Start a component that ended again, and wait until it is ready."""
        self.launch(name, **environ)
        self.until_ready(name)
        if name in self.proxies:
            self._follow(name)

    def again(self, *names: str) -> None:
        """End components and start them again."""
        for name in names:
            self.kill(name, signal.SIGTERM)
            self.relaunch(name)
        self.until_attached(*names)

    def _proxied(self, name: str) -> FaultyPorts:
        self.proxies[name] = FaultyPorts()
        return self.proxies[name].__enter__()

    def _follow(self, name: str) -> None:
        """Let the proxy of a node that was started again forward to its new port."""
        self.proxies[name].rpc.target = str(read_endpoints(self.folder / name).rpc)
