"""A network for models that are much larger than what waits between its parts, with a proxy at either hop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runnel.common.blobs import digest_file
from tests.chaos.proxied_network import ProxiedNetwork
from tests.chaos.proxy import Way

TRAIN = """
import sys
import numpy as np

with np.load(sys.argv[1]) as model:
    w = model["w"]
w += 1
np.savez(sys.argv[2], w=w)
"""

Moved = dict[tuple[str, Way], float]

# In models: what goes through, without a cut. The weighted sum is float64.
WHOLE: Moved = {("reducer", Way.DOWN): 1, ("c1", Way.DOWN): 1, ("c1", Way.UP): 1, ("reducer", Way.UP): 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a round took, in seconds and in models."""

    seconds: float
    moved: Moved
    over_blob_port: Moved

    @property
    def over_grpc(self) -> Moved:
        return {key: size - self.over_blob_port[key] for key, size in self.moved.items()}


class LargeNetwork(ProxiedNetwork):
    """A reducer, a combiner and a client, who adds 1 to a model of ``model_bytes`` zeros."""

    def __init__(self, folder: Path, model_bytes: int, **environ: str) -> None:
        super().__init__(folder, **environ)
        self.model_bytes = model_bytes
        self._package = self._model = ""
        self._rounds = 0

    def start(self) -> None:
        """Start all, and push the package and the model."""
        # Nobody else takes the client, who comes back to where it was cut off.
        self.start_reducer("--keep-models", "1", "--direct-clients", "0")
        self.start_combiner("c1")
        data = self.folder / "data.txt"
        data.touch()
        self.start_client("site-1", data)
        self.until_attached("c1", "site-1")
        self._package = self.sdk.packages.push(self.build_package(TRAIN, TRAIN)).digest
        seed = self.folder / "seed.npz"
        np.savez(seed, w=np.broadcast_to(np.float32(0), self.model_bytes // 4))
        self._model = self.sdk.models.push(seed).model
        seed.unlink()

    def run_round(self, timeout_s: float) -> Round:
        """Run a round from the newest model on; return what it took."""
        before, began = self._moved(), time.monotonic()
        session = self.sdk.sessions.start(
            package=self._package, seed=self._model, rounds=1, round_timeout_s=timeout_s, validate_every=0
        ).session
        ended = self.until_ended(session, timeout_s)
        seconds = time.monotonic() - began
        assert ended["status"] == "finished", ended["reason"]
        self._model = str(ended["model"])
        self._rounds += 1
        moved, blobs = (
            {key: size - then[key] for key, size in now.items()}
            for then, now in zip(before, self._moved(), strict=True)
        )
        return Round(seconds=seconds, moved=moved, over_blob_port=blobs)

    def _moved(self) -> tuple[Moved, Moved]:
        """Return how often the bytes of the model have gone each way before each node, and that to its blob port."""
        ports = self.proxies.items()
        return (
            {(name, way): size / self.model_bytes for name, each in ports for way, size in each.moved.items()},
            {(name, way): size / self.model_bytes for name, each in ports for way, size in each.blobs.moved.items()},
        )

    def peaks(self) -> dict[str, int]:
        """Return the most resident memory of each process."""
        found = {}
        for name in self.components:
            status = Path(f"/proc/{self.process(name).pid}/status").read_text()
            (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
            found[name] = int(peak) * 1024
        return found

    def require_exact(self) -> None:
        """Every round so far has added 1 to every number, once."""
        target = self.folder / "got.npz"
        self.sdk.models.get(self._model, target)
        with np.load(target) as model:
            w = model["w"]
            assert w.shape == (self.model_bytes // 4,)
            assert w.min() == w.max() == float(self._rounds)
        assert digest_file(target).sha256 == self.sdk.models.show(self._model).digest
        target.unlink()
