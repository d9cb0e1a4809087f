"""A network whose final model tells exactly which updates were counted how often.

Every client adds a constant of its own to every number. With the steps 3, 6, 12, … and the weights 1, 2, 4, … the mean
of a round over all clients is a whole number, so the sums in float64 are exact: the model of n rounds is known bit for
bit, and an update that counts with another weight, as in a mean over combiners, is seen too.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runnel.common.crash_points import VARIABLE, CrashPoint
from runnel.common.tensors import write_npz
from tests.chaos.proxied_network import ProxiedNetwork
from tests.eventually import eventually_blocking
from tests.process.process_network import START_S

SIZE = 400_000  # float64: several chunks of the wire, and more than goes over gRPC

TRAIN = """
import json, os, sys
import numpy as np

with open(os.environ["RUNNEL_DATA"]) as file:
    step = float(file.read())
with np.load(sys.argv[1]) as model:
    arrays = {name: model[name] + step for name in model.files}
np.savez(sys.argv[2], **arrays)
with open(sys.argv[2] + "-metadata", "w") as file:
    json.dump({"num_examples": step / 3}, file)
with open(os.environ["RUNNEL_DATA"] + ".runs", "a") as file:
    file.write(os.environ["RUNNEL_SESSION"] + " " + os.environ["RUNNEL_ROUND"] + "\\n")
"""

VALIDATE = """
import json, sys
import numpy as np

with np.load(sys.argv[1]) as model:
    value = float(model["b"][0])
with open(sys.argv[2], "w") as file:
    json.dump({"value": value}, file)
"""


class AddingNetwork(ProxiedNetwork):
    """``c1`` … and ``site-1`` … behind faulty proxies."""

    ROUND_TIMEOUT_S = 120.0

    def __init__(self, folder: Path, **environ: str) -> None:
        super().__init__(folder, **environ)
        self.steps: dict[str, float] = {}
        self._preferred: dict[str, str] = {}

    def start(self, combiners: int, clients: int, *reducer: str, above: str = "") -> None:
        """Start all, ``reducer`` with these further arguments; clients prefer the combiners in turn.

        ``above``: a combiner of this name is between the others and the reducer.
        """
        self.start_reducer(*reducer)
        for name in [*([above] if above else []), *(f"c{number}" for number in range(1, combiners + 1))]:
            self.start_combiner(name, "--parent", above if name != above else "")
            if name == above:
                self.until_attached(name)
        with self.together():
            for number in range(1, clients + 1):
                name = f"site-{number}"
                self.steps[name] = 3.0 * 2 ** (number - 1)
                data = self.folder / f"{name}.txt"
                data.write_text(str(self.steps[name]))
                self._preferred[name] = f"c{(number - 1) % combiners + 1}" if combiners else ""
                self.start_client(name, data, "--prefer", self._preferred[name])
        self.until_attached(*self.proxies.keys() - {"reducer"}, *self.steps)

    def launch(self, name: str, **environ: str) -> None:
        super().launch(name, **({VARIABLE: f"@{self._crash_file(name)}"} | environ))

    def crash(self, name: str, point: CrashPoint, victim: str | None = None) -> None:
        """Let a component that runs be killed, once, when it next passes the point; or ``victim``, when it does."""
        beside = self.folder / f"{name}.crash.part"
        beside.write_text(point.value if victim is None else f"{point.value} {self.process(victim).pid}")
        beside.replace(self._crash_file(name))

    def mean_of(self, *names: str) -> float:
        """Return what a round of these clients adds."""
        steps = [self.steps[name] for name in names]
        return sum(step * step for step in steps) / sum(steps)

    def places(self) -> dict[str, str | None]:
        """Return where each client is."""
        nodes = {node.name: node.attached_to for node in self.sdk.nodes.list() if node.status == "attached"}
        return {name: nodes.get(name) for name in self.steps}

    def _crash_file(self, name: str) -> Path:
        return self.folder / f"{name}.crash"

    def gather(self, *, anew: bool = False) -> str:
        """Return the combiner at which all clients are; if they are at several, c2 goes for a while.

        ``anew``: it has kept no model of what was before.
        """

        def places() -> set[str | None]:
            return set(self.places().values())

        if anew:
            self.again("c1")
            self.until_attached(*self.steps)
        found = places()
        if found != {"c1"} and (anew or found != {"c2"}):
            self.kill("c2", signal.SIGTERM)
            eventually_blocking(lambda: places() == {"c1"}, timeout_s=START_S, state=self.places)
            self.relaunch("c2")
            self.until_attached("c2")
            found = {"c1"}
        (name,) = found
        return str(name)

    def spread(self) -> str:
        """Let there be clients at each of c1 and c2; return where site-1 is."""
        self.until_attached("c1", "c2", *self.steps)
        if len(set(self.places().values())) == 1:
            self.again(*(name for name, place in self.places().items() if place != self._preferred[name]))
        # Of who was started again, the place of before may still be told.
        places = eventually_blocking(
            lambda: set((found := self.places()).values()) == {"c1", "c2"} and found,
            timeout_s=START_S,
            state=self.places,
        )
        assert places
        return str(places["site-1"])

    def work(self, size: int = SIZE) -> tuple[str, str]:
        """Push the package and a seed with so many numbers in ``w``; return digest and model id."""
        package = self.sdk.packages.push(self.build_package(TRAIN, VALIDATE))
        seed = self.folder / "seed.npz"
        write_npz(seed, {"w": np.arange(size, dtype=np.float64), "b": np.zeros(3)})
        return package.digest, self.sdk.models.push(seed).model

    def start_session(self, work: tuple[str, str], rounds: int, **more: Any) -> str:
        """Start a session that wants every client in every round."""
        package, seed = work
        options = {"min_clients": len(self.steps), "round_timeout_s": self.ROUND_TIMEOUT_S, "retries": 20} | more
        return self.sdk.sessions.start(package=package, seed=seed, rounds=rounds, **options).session

    def session_under_way(self, work: tuple[str, str], rounds: int) -> str:
        """Start a session; return it when a round is done and others are not: what happens now is in the middle of it.

        One that was over before this was seen, as this process may stand still too, is followed by another.
        """
        for _ in range(5):
            session = self.start_session(work, rounds)

            def done(session: str = session) -> bool:
                return any(each.status == "committed" for each in self.sdk.sessions.show(session).rounds)

            eventually_blocking(done, timeout_s=60)
            if self.sdk.sessions.show(session).status == "running":
                return session
            self.require_exact(session, rounds)
        raise AssertionError("five sessions were over before it was seen that their first round was")

    def require_exact(
        self,
        session: str,
        rounds: int,
        *,
        again: Sequence[str] = (),
        timeout_s: float = 90.0,
        gain: float | None = None,
        within: float = 0.0,
    ) -> None:
        """Wait for the end; every update was counted once, and nobody but ``again`` trained a round twice.

        ``gain``: what a round adds, if not the weighted mean of all steps. ``within``: so much of it rounding may lose.
        """
        ended = self.until_ended(session, timeout_s)
        assert ended["status"] == "finished", ended["reason"]
        gain = rounds * (self.mean_of(*self.steps) if gain is None else gain)
        self.require_added(ended, gain, within * gain)
        listed = ended["rounds"]
        assert isinstance(listed, list)
        assert [r["updates"] for r in listed] == [len(self.steps)] * rounds
        for name in self.steps:
            trained = self.trained(name, session)
            assert len(set(trained)) == rounds
            assert name in again or len(trained) == rounds, f"{name} did finished work again"

    def require_added(self, ended: Mapping[str, object], gain: float, within: float) -> None:
        """Require that the model of a session that ended is its seed plus ``gain``, give or take ``within``."""
        target = self.folder / f"{ended['session']}.npz"
        self.sdk.models.get(str(ended["model"]), target)
        with np.load(target) as model:
            added = np.concatenate([model["w"] - np.arange(model["w"].size), model["b"]])
        assert np.abs(added - gain).max() <= within, f"{added.min()} … {added.max()} is not {gain}"
        target.unlink()

    def trained(self, name: str, session: str) -> list[int]:
        """Return the rounds of a session that a client trained, in their order; a round twice that it trained twice."""
        log = self.folder / f"{name}.txt.runs"
        runs = (line.split() for line in log.read_text().splitlines()) if log.exists() else ()
        return [int(number) for its, number, *_ in runs if its == session]

    def require_nothing_held(self) -> None:
        """Wait until every client was told that it may forget its reports, and nothing of a sum is left above.

        A spare file is of what was forgotten: it is kept for half a minute, to be written over.
        """
        running = [name for name in self.proxies if self.process(name).poll() is None]
        folders = [self.folder / name / "outbox" for name in self.steps]
        folders += [self.folder / name / ("partials" if name == "reducer" else "sums") for name in running]

        def held() -> list[Path]:
            return [file for folder in folders for file in folder.iterdir() if file.suffix != ".spare"]

        eventually_blocking(lambda: not held(), timeout_s=30, state=held)
