"""The names that scripts of others rely on: commands, flags, exit statuses, documents and files of a real network."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import pytest

from runnel.cli.main import main
from runnel.common.tensors import write_npz
from tests.doubles.said import Said
from tests.eventually import eventually_blocking
from tests.process.secure_network import SecureNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

TRAIN = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
VALIDATE = "import json, sys; json.dump({'zeta': 1, 'accuracy': 0.5, 'loss': 2}, open(sys.argv[2], 'w'))"
FAILS = "raise SystemExit(3)"


class NamedNetwork(SecureNetwork):
    """Started by the words of the documentation and nothing else."""

    def serve(self) -> None:
        free = "127.0.0.1:0"
        self._add("reducer", ["reducer", "--rpc", free, "--http", free])
        self.rpc, self.http = (self.endpoints("reducer")[name] for name in ("rpc", "http"))
        self.operator = (self.folder / "reducer" / "operator.token").read_text().strip()
        combiner, client = (
            self.json("token", "create", "--role", role, "--name", f"of a {role}")["token"]
            for role in ("combiner", "client")
        )
        network = ["--network", self.rpc]
        data = ["--data", f"default={self.folder}", "--data", f"archive={self.folder}"]
        with self.together():
            self._add("c1", ["combiner", *network, "--listen", free, "--name", "c1", "--token", combiner])
            self._add("site-1", ["client", *network, "--name", "site-1", *data, "--token", client])
        eventually_blocking(lambda: len(self.json("node", "list")) == 2)

    def endpoints(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / name / "endpoints.json").read_text())
        assert found.pop("pid") == self.process(name).pid
        return found

    def json(self, *arguments: str, status: int = 0) -> Any:
        """Run a people's command and return the one document on its standard output."""
        return self.said(*arguments, status=status).document

    def said(self, *arguments: str, status: int = 0) -> Said:
        said = self.here(*arguments, "--json")
        assert said.status == status, said.err
        return said

    def here(self, *arguments: str) -> Said:
        """Run a people's command in this process: most of its time a process of its own would only import."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            patch.setenv("RUNNEL_URL", self.url)
            patch.setenv("RUNNEL_TOKEN", self.operator)
            status = main(arguments)
        return Said(status=status, out=out.getvalue(), err=err.getvalue())

    def start(self, package: str, seed: str, *more: str) -> list[str]:
        """Return the words that start a session."""
        return ["session", "start", "--package", package, "--seed", seed, *more]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamedNetwork]:
    with NamedNetwork(tmp_path_factory.mktemp("names")) as net:
        net.serve()
        for name, train in (("good", TRAIN), ("bad", FAILS)):
            (net.folder / name).mkdir()
            (net.folder / name / "train.py").write_text(train)
            (net.folder / name / "validate.py").write_text(VALIDATE)
        write_npz(net.folder / "seed.npz", {"w": np.zeros(3)})
        yield net


def test_components_say_where_they_are(network: NamedNetwork) -> None:
    assert set(network.endpoints("reducer")) == {"rpc", "http"}
    assert set(network.endpoints("c1")) == {"rpc", "attached_to"}
    # They are attached before they have written so.
    eventually_blocking(lambda: network.endpoints("c1")["attached_to"] == "reducer")
    eventually_blocking(lambda: network.endpoints("site-1") == {"attached_to": "c1"})
    for name in network.components:
        assert network.log_of(name).count("event=ready ") == 1
    token = network.folder / "reducer" / "operator.token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_packages(network: NamedNetwork) -> None:
    assert network.json("package", "init", "made")
    built = network.json("package", "build", "good", "-o", "good.tar.gz")
    assert (network.folder / "good.tar.gz").exists()
    for what in ("good", "good.tar.gz"):
        assert network.json("package", "check", what, "--seed", "seed.npz")["ok"]
    assert network.json("package", "show", "good.tar.gz")["digest"] == built["digest"]
    assert network.json("package", "push", "good.tar.gz")["digest"] == built["digest"]
    plain = network.person("package", "push", "good.tar.gz")
    assert plain.out.split() == [built["digest"]]
    assert network.json("package", "show", built["digest"])["digest"] == built["digest"]
    assert [each["digest"] for each in network.json("package", "list")] == [built["digest"]]
    failed = network.said("package", "check", "bad", "--seed", "seed.npz", status=1)
    assert "exit status 3" in failed.out + failed.err


def test_sessions_and_models(network: NamedNetwork) -> None:
    network.json("package", "build", "good", "-o", "g.tar.gz")
    network.json("package", "build", "bad", "-o", "b.tar.gz")
    watched = network.said(*network.start("g.tar.gz", "seed.npz", "--rounds", "2", "--watch"))
    assert watched.err  # the progress
    ended = watched.document
    session = ended["session"]
    assert (ended["status"], ended["reason"]) == ("finished", None)
    assert [each["round"] for each in ended["rounds"]] == [1, 2]
    wanted = {"round", "seconds", "updates", "late", "failed", "model", "metrics"}
    for each in ended["rounds"]:
        assert wanted <= set(each)
        assert list(each["metrics"]) == ["accuracy", "loss", "zeta"]  # in the same order at each look
    assert ended["model"] == ended["rounds"][-1]["model"]
    assert network.json("session", "show", session) == ended
    assert network.json("session", "watch", session) == ended
    extended = network.json("session", "extend", session, "--rounds", "1")
    assert extended["session"] == session
    again = network.json("session", "watch", session)
    assert [each["round"] for each in again["rounds"]] == [1, 2, 3]
    # A failed one, which is started by digest and model.
    digest, seed = network.json("package", "push", "b.tar.gz")["digest"], again["model"]
    bad = network.start(digest, seed, "--rounds", "1", "--retries", "0", "--round-timeout", "20")
    failed = network.json(*bad, "--watch", status=1)
    assert (failed["status"], failed["rounds"][0]["failed"]) == ("failed", 1)
    assert network.json("session", "resume", failed["session"])["session"] == failed["session"]
    assert network.json("session", "watch", failed["session"], status=1)["status"] == "failed"
    # One that waits for clients that are not there, and is stopped.
    waiting = network.json(*network.start("g.tar.gz", "seed.npz", "--rounds", "1", "--min-clients", "9"))["session"]
    assert network.json("session", "stop", waiting)["session"] == waiting
    assert network.json("session", "watch", waiting, status=1)["status"] == "stopped"
    assert {each["session"] for each in network.json("session", "list")} == {session, failed["session"], waiting}
    models = network.json("model", "list", "--session", session)
    assert len(models) == 3
    assert len(network.json("model", "list")) > 3
    assert network.json("model", "show", again["model"])
    assert network.json("model", "get", again["model"], "-o", "got.npz")
    with np.load(network.folder / "got.npz") as model:
        assert np.array_equal(model["w"], np.zeros(3))


def test_the_network(network: NamedNetwork) -> None:
    assert network.json("status")["rpc_address"] == network.rpc
    assert {each["name"] for each in network.json("node", "list")} == {"c1", "site-1"}
    made = network.json("token", "create", "--role", "viewer")
    assert made["id"] in {each["id"] for each in network.json("token", "list")}
    seen = network.runnel("status", "--url", network.url, "--token", made["token"], "--json")
    assert seen.document["clients_attached"] == 1
    assert network.json("token", "revoke", made["id"])["id"] == made["id"]
    refused = network.runnel("status", "--url", network.url, "--token", made["token"], "--json")
    assert (refused.status, refused.out) == (1, "")
