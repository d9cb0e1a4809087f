"""Who is let in, and what they see: tokens, organisations and secrets, with real processes."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from runnel.common.errors import Forbidden, NotFound, RunnelError
from runnel.common.tensors import write_npz
from runnel.compute_package import pack
from tests.eventually import eventually_blocking
from tests.process.secure_network import SecureNetwork

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(120)]

TTL_S = 10.0

TRAIN = """
import os, shutil, sys

print("what I see:", dict(os.environ))
shutil.copy(sys.argv[1], sys.argv[2])
"""
VALIDATE = "import json, sys; json.dump({'accuracy': 0.5}, open(sys.argv[2], 'w'))"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureNetwork]:
    folder = tmp_path_factory.mktemp("trust")
    (folder / "data").write_text("1")
    with SecureNetwork(folder, RUNNEL_LOG_LEVEL="debug") as net:
        net.by_exec = True  # their command lines are looked at
        net.start_reducer(RUNNEL_REDUCER_CREDENTIAL_TTL_S=str(TTL_S))
        net.start_combiner("c1")
        net.start_client("site-1", folder / "data")
        net.until_attached("c1", "site-1")
        package = folder / "package"
        package.mkdir()
        (package / "train.py").write_text(TRAIN)
        (package / "validate.py").write_text(VALIDATE)
        pack(package, folder / "package.tar.gz")
        write_npz(folder / "seed.npz", {"w": np.zeros(10)})
        yield net


@pytest.fixture(scope="module")
def session(network: SecureNetwork) -> dict[str, Any]:
    """Return a session that finished."""
    started = network.sdk.sessions.start(
        package=str(network.folder / "package.tar.gz"), seed=str(network.folder / "seed.npz"), rounds=2
    )
    ended = network.until_ended(started.session)
    assert ended["status"] == "finished", ended["reason"]
    return ended


@pytest.fixture(scope="module")
def tokens(network: SecureNetwork) -> dict[str, str | None]:
    """Return tokens that are good for nothing here, by what is wrong with them, and good ones by role."""
    revoked = network.sdk.tokens.create("operator")
    network.sdk.tokens.revoke(revoked.id)
    found: dict[str, str | None] = {
        "unknown": "rnl_" + "0" * 52,
        "no token": None,
        "revoked": revoked.token,
        "expired": network.token("operator", ttl_s=0.01),
    }
    roles = {role: network.token(role) for role in ("viewer", "initiator", "client", "combiner")}
    network.secrets.append(str(revoked.token))
    return found | roles


# ---- people


@pytest.mark.parametrize("what", ["unknown", "no token", "revoked", "expired"])
def test_a_person_without_a_good_token_reads_one_line(
    network: SecureNetwork, tokens: dict[str, str | None], what: str
) -> None:
    said = network.person("session", "list", token=tokens[what] or "")
    assert (said.status, said.out) == (1, "")
    (line,) = said.err.splitlines()
    assert what in line
    assert "token" in line
    assert str(tokens[what]) not in line
    as_json = network.person("session", "list", "--json", token=tokens[what] or "")
    assert (as_json.status, as_json.out) == (1, "")
    assert json.loads(as_json.err)["error"]["code"] == "unauthenticated"


@pytest.mark.parametrize(
    ("role", "command", "allowed"),
    [
        ("viewer", ("status",), True),
        ("viewer", ("session", "stop", "ses-none"), False),
        ("viewer", ("token", "list"), False),
        ("initiator", ("session", "stop", "ses-none"), True),
        ("initiator", ("token", "create", "--role", "operator"), False),
        ("client", ("status",), False),
        ("combiner", ("node", "list"), False),
    ],
)
def test_a_role_allows_what_it_is_for(
    network: SecureNetwork, tokens: dict[str, str | None], role: str, command: tuple[str, ...], allowed: bool
) -> None:
    said = network.person(*command, token=str(tokens[role]))
    refused = f"A token of the role {role} does not allow this" in said.err
    assert refused is not allowed
    assert allowed or (said.status, said.out, len(said.err.splitlines())) == (1, "", 1)


def test_a_token_of_blanks_is_none(network: SecureNetwork) -> None:
    assert "carries no token" in network.person("status", token=" ").err


# ---- nodes


@pytest.mark.parametrize("kind", ["client", "combiner"])
@pytest.mark.parametrize("what", ["unknown", "no token", "revoked", "expired", "viewer", "the other"])
def test_a_node_without_a_good_token_ends_and_says_why(
    network: SecureNetwork, tokens: dict[str, str | None], kind: str, what: str, tmp_path: Path
) -> None:
    other = "combiner" if kind == "client" else "client"
    token = tokens[other if what == "the other" else what]
    arguments = [kind, "--network", network.rpc, "--state", str(tmp_path), "--name", "stranger"]
    listen = ["--listen", "127.0.0.1:0"] if kind == "combiner" else []
    environ: dict[str, Any] = {} if token is None else {f"RUNNEL_{kind.upper()}_TOKEN": token}
    said = network.runnel(*arguments, *listen, timeout_s=30, **environ)
    assert (said.status, said.out) == (1, "")
    assert "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert last.startswith("runnel: ")
    assert f"`runnel token create --role {kind}`" in last
    assert {"viewer": "role viewer", "the other": f"role {other}"}.get(what, what) in last
    assert token is None or token not in said.err
    assert "stranger" not in {node.name for node in network.sdk.nodes.list()}


def test_a_client_whose_token_is_revoked_ends_within_the_time_of_its_credential(network: SecureNetwork) -> None:
    token = network.sdk.tokens.create("client", name="for a while")
    assert token.token is not None
    network.start_client("short", network.folder / "data", token=token.token)
    network.until_attached("short")
    revoked = time.monotonic()
    network.sdk.tokens.revoke(token.id)
    assert network.until_dead("short", timeout_s=3 * TTL_S) == 1
    assert time.monotonic() - revoked < TTL_S + 15
    last = network.log_of("short").splitlines()[-1]
    assert last.startswith("runnel: The client short came with a token that is revoked.")
    eventually_blocking(lambda: "away" in {node.status for node in network.sdk.nodes.list() if node.name == "short"})


# ---- organisations


@pytest.mark.parametrize("role", ["operator", "initiator", "viewer"])
def test_another_organisation_sees_nothing_of_ours(network: SecureNetwork, session: dict[str, Any], role: str) -> None:
    with network.network(network.token(role, organisation=f"theirs-{role}")) as theirs:
        assert list(theirs.sessions.list()) == []
        assert list(theirs.models.list()) == []
        assert list(theirs.packages.list()) == []
        assert list(theirs.nodes.list()) == []
        status = theirs.status()
        assert (status.clients_attached, status.combiners_attached) == (0, 0)
        assert (status.sessions_running, status.blobs_bytes) == (0, 0)
        ours = str(session["session"])
        hidden: list[Callable[[], object]] = [
            lambda: theirs.sessions.show(ours),
            lambda: list(theirs.sessions.logs(ours)),
            lambda: theirs.models.show(str(session["model"])),
            lambda: theirs.models.get(str(session["model"]), network.folder / "stolen.npz"),
            lambda: theirs.packages.show(str(session["package"])),
            lambda: next(theirs.sessions.watch(ours)),
        ]
        if role != "viewer":
            hidden += [lambda: theirs.sessions.stop(ours), lambda: theirs.sessions.extend(ours, 1)]
        for look in hidden:
            with pytest.raises(NotFound):
                look()
    answer = network.person("session", "show", ours, "--json", token=network.token(role, organisation="elsewhere"))
    assert answer.status == 1
    assert json.loads(answer.err)["error"]["code"] == "not_found"


def test_an_operator_of_another_organisation_manages_its_own_tokens_only(network: SecureNetwork) -> None:
    mine = network.sdk.tokens.create("viewer")
    with network.network(network.token("operator", organisation="theirs")) as theirs:
        made = theirs.tokens.create("viewer")
        assert made.organisation == "theirs"
        assert {token.organisation for token in theirs.tokens.list()} == {"theirs"}
        with pytest.raises(NotFound):
            theirs.tokens.revoke(mine.id)
        with pytest.raises(Forbidden, match="makes tokens for theirs, not for default"):
            theirs.tokens.create("operator", organisation="default")
    assert made.id in {token.id for token in network.sdk.tokens.list()}  # who runs the network sees all


def test_their_sessions_do_not_run_at_our_clients(network: SecureNetwork, session: dict[str, Any]) -> None:
    with network.network(network.token("initiator", organisation="theirs-too")) as theirs:
        with pytest.raises(NotFound):
            theirs.sessions.start(package=str(session["package"]), seed=str(session["seed"]), rounds=1)
        same = theirs.packages.push(network.folder / "package.tar.gz")
        assert (same.digest, same.organisation) == (session["package"], "theirs-too")
        started = theirs.sessions.start(
            package=same.digest, seed=str(network.folder / "seed.npz"), rounds=1, round_timeout_s=1.0
        )

        def ended() -> bool:
            return theirs.sessions.show(started.session).status != "running"

        eventually_blocking(ended, timeout_s=20)
        view = theirs.sessions.show(started.session)
        assert view.status == "failed"
        assert "0 clients are attached" in str(view.reason)


def test_what_others_upload_in_vain_does_not_take_our_files_away(
    network: SecureNetwork, session: dict[str, Any]
) -> None:
    """The same bytes under another name are refused, and stay what they are under ours."""
    model = network.folder / "ours.npz"
    network.sdk.models.get(str(session["model"]), model)
    with network.network(network.token("initiator", organisation="vandals")) as theirs:
        for wrong in (
            lambda: theirs.packages.push(model),
            lambda: theirs.models.push(network.folder / "package.tar.gz"),
        ):
            with pytest.raises(RunnelError):
                wrong()
    network.sdk.models.get(str(session["model"]), network.folder / "again.npz")
    assert (network.folder / "again.npz").read_bytes() == model.read_bytes()


# ---- secrets


def test_secrets_are_nowhere_to_be_seen(network: SecureNetwork, session: dict[str, Any]) -> None:
    token_file = network.folder / "reducer" / "operator.token"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE((network.folder / "reducer" / "credential.key").stat().st_mode) == 0o600
    assert len(network.secrets) > 5
    told = {name: network.log_of(name) for name in network.components}
    lines = network.sdk.sessions.logs(str(session["session"]))
    told["session"] = "\n".join(line.text for line in lines)
    assert "what I see" in told["session"]
    for name, component in network.components.items():
        if component.process is not None and component.process.poll() is None:
            told[f"ps {name}"] = " ".join(psutil.Process(component.process.pid).cmdline())
    for name, text in told.items():
        assert len(text) > 50, name
        assert not [secret for secret in network.secrets if secret in text], name
        assert "eyJ" not in text, name  # how each credential begins
    files = [file for file in network.folder.rglob("*") if file.is_file() and file != token_file]
    kept = [file for file in files for secret in network.secrets if secret.encode() in file.read_bytes()]
    assert kept == []
