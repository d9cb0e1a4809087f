"""The people's commands against a served network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runnel.cli.main import main
from runnel.reducer.domain.values import LogView, NodeView
from runnel.reducer.http import round_document
from tests.doubles.reducer_service import NOW, OPERATOR_TOKEN, VIEWER_TOKEN, InMemoryReducer
from tests.doubles.said import Said
from tests.doubles.serving import serving
from tests.eventually import eventually

pytestmark = pytest.mark.network


@dataclass(slots=True, kw_only=True)
class People:
    """Somebody at a keyboard, with a network and two files."""

    reducer: InMemoryReducer
    url: str
    folder: Path
    capsys: pytest.CaptureFixture[str]

    async def runnel(self, *arguments: str) -> Said:
        status = await asyncio.to_thread(main, [*arguments, "--url", self.url])
        captured = self.capsys.readouterr()
        return Said(status=status, out=captured.out, err=captured.err)

    async def start(self, *more: str) -> Said:
        package, seed = self.folder / "digits.tar.gz", self.folder / "seed.npz"
        package.write_bytes(b"archive")
        seed.write_bytes(b"model")
        return await self.runnel(
            "session", "start", "--package", str(package), "--seed", str(seed), "--rounds", "3", *more
        )


@pytest.fixture
async def people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[People]:
    monkeypatch.delenv("RUNNEL_TOKEN", raising=False)
    async with serving(tmp_path) as served:
        capsys.readouterr()
        yield People(reducer=served.reducer, url=served.url, folder=tmp_path, capsys=capsys)


async def run_session(people: People, session: str, status: str = "finished", reason: str | None = None) -> None:
    await eventually(lambda: people.reducer.following == 1)
    people.reducer.happen("session.phase", session, {"phase": "training", "round": 1})
    people.reducer.commit(session, round_document)
    people.reducer.commit(session, round_document)
    people.reducer.finish(session, status, reason)


async def test_start_prints_the_session_at_once(people: People) -> None:
    said = await people.start("--json", "--name", "first", "--strategy-option", "learning_rate=0.5")
    assert (said.status, said.err) == (0, "")
    document = said.document
    assert isinstance(document, dict)
    assert document["session"] == "ses-000000"
    assert document["status"] == "running"
    assert document["config"]["strategy_options"] == {"learning_rate": 0.5}
    plain = await people.start()
    assert "runnel session watch ses-000001" in plain.out


async def test_every_option_of_start_arrives(people: People) -> None:
    said = await people.start(
        *("--strategy", "fedavgm", "--min-clients", "2", "--sample", "4", "--round-timeout", "9", "--buffer", "3"),
        *("--validate-every", "2", "--stop-when", "accuracy>=0.97", "--client-settings", '{"lr": 0.1}'),
        *("--compress", "top-k:0.05+zstd", "--retries", "1", "--random-seed", "7", "--keep-models", "4"),
        *("--no-server-functions", "--json"),
    )
    assert said.status == 0, said.err
    document = said.document
    assert isinstance(document, dict)
    assert document["config"] == {
        "rounds": 3,
        "strategy": "fedavgm",
        "strategy_options": {},
        "min_clients": 2,
        "sample": 4,
        "over_select": 1.0,
        "buffer": 3,
        "round_timeout_s": 9.0,
        "retries": 1,
        "validate_every": 2,
        "compress": "top-k:0.05+zstd",
        "stop_when": "accuracy>=0.97",
        "client_settings": {"lr": 0.1},
        "random_seed": 7,
        "keep_models": 4,
        "server_functions": False,
    }


async def test_start_and_watch_with_json(people: People) -> None:
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(people.start("--watch", "--json"))
        await run_session(people, "ses-000000")
    said = starting.result()
    assert said.status == 0
    document = said.document
    assert isinstance(document, dict)
    assert (document["status"], len(document["rounds"]), document["reason"]) == ("finished", 2, None)
    assert said.err.splitlines() == [
        "session ses-000000 created",
        "round 1: training",
        "round 1 committed: 2 updates, 1 late, 0 failed, 1.50 s, accuracy 0.5, loss 0.5",
        "round 2 committed: 2 updates, 1 late, 0 failed, 1.50 s, accuracy 0.75, loss 0.25",
        "session ses-000000 finished",
    ]


@pytest.mark.parametrize("how", ["failed", "stopped"])
async def test_watch_of_a_session_that_does_not_finish_ends_with_1(people: People, how: str) -> None:
    await people.start()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(people.runnel("session", "watch", "ses-000000"))
        await run_session(people, "ses-000000", how, "too few clients")
    said = watching.result()
    assert said.status == 1
    assert said.out.splitlines()[-1] == f"session ses-000000 {how}: too few clients"


async def test_watch_on_a_terminal(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    await people.start()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(people.runnel("session", "watch", "ses-000000"))
        await run_session(people, "ses-000000")
    said = watching.result()
    assert said.status == 0
    assert "finished" in said.out
    assert "runnel model get mod-" in said.out


async def test_interrupting_a_watch_leaves_the_session_running(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    await people.start()

    def interrupted(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("runnel.cli.session_view.event_line", interrupted)
    said = await people.runnel("session", "watch", "ses-000000")
    assert said.status == 130
    assert "runnel session watch ses-000000" in said.err
    assert "stop" not in people.reducer.effects


async def test_show_list_stop_resume_extend(people: People) -> None:
    await people.start("--name", "first")
    people.reducer.commit("ses-000000", round_document)
    shown = await people.runnel("session", "show", "ses-0000", "--clients")
    assert shown.status == 0
    for wanted in ("ses-000000", "running", "1 of 3", "site-1", "accuracy"):
        assert wanted in shown.out
    as_json = (await people.runnel("session", "show", "ses-000000", "--json")).document
    assert isinstance(as_json, dict)
    assert as_json["rounds"][0]["metrics"]["accuracy"] == 0.5
    assert "first" in (await people.runnel("session", "list")).out
    assert "stopped, 1 of 3 rounds" in (await people.runnel("session", "stop", "ses-000000")).out
    again = await people.runnel("session", "stop", "ses-000000")
    assert (again.status, again.out) == (1, "")
    assert "only a running session" in again.err
    assert "running" in (await people.runnel("session", "resume", "ses-000000")).out
    assert "1 of 5" in (await people.runnel("session", "extend", "ses-000000", "--rounds", "2")).out
    listed = (await people.runnel("session", "list", "--json")).document
    assert isinstance(listed, list)
    assert listed[0]["session"] == "ses-000000"


async def test_models(people: People) -> None:
    await people.start()
    people.reducer.commit("ses-000000", round_document)
    listed = await people.runnel("model", "list", "--session", "ses-000000")
    assert "mod-000001" in listed.out
    assert "mod-000000" not in listed.out
    shown = await people.runnel("model", "show", "mod-000001")
    assert "mod-000000" in shown.out
    document = (await people.runnel("model", "show", "mod-000001", "--json")).document
    assert isinstance(document, dict)
    assert [step["model"] for step in document["trail"]] == ["mod-000001", "mod-000000"]
    target = people.folder / "out.npz"
    got = await people.runnel("model", "get", "mod-000000", "-o", str(target))
    assert (got.status, target.read_bytes()) == (0, b"model")
    nowhere = await people.runnel("model", "get", "mod-000000", "-o", str(people.folder / "no" / "x.npz"))
    assert nowhere.status == 1
    assert "can't be written" in nowhere.err


async def test_packages(people: People) -> None:
    archive = people.folder / "mine.tar.gz"
    archive.write_bytes(b"archive")
    pushed = await people.runnel("package", "push", str(archive))
    digest = pushed.out.strip()
    assert len(digest) == 64
    assert digest[:16] in (await people.runnel("package", "list")).out
    shown = await people.runnel("package", "show", digest[:10])
    assert "train: python train.py" in shown.out
    folder = await people.runnel("package", "push", str(people.folder))
    assert (folder.status, folder.out) == (1, "")
    assert "runnel package build" in folder.err


async def test_tokens_nodes_status_and_logs(people: People) -> None:
    made = await people.runnel("token", "create", "--role", "client", "--name", "site-1")
    assert made.out == "secret-of-tok-000000\n"
    assert "runnel token revoke tok-000000" in made.err
    assert (await people.runnel("token", "revoke", "tok-000000")).status == 0
    assert "revoked" in (await people.runnel("token", "list")).out
    bad = await people.runnel("token", "create", "--role", "king")
    assert bad.status == 1
    assert "'operator'" in bad.err
    people.reducer.members.append(
        NodeView(
            name="site-1",
            node_id="n",
            kind="client",
            organisation="default",
            status="attached",
            attached_to="combiner-1",
            version="0.1.0",
            platform="Linux",
            address=None,
            first_seen_at=NOW,
            last_seen_at=NOW,
        )
    )
    assert "combiner-1" in (await people.runnel("node", "list")).out
    assert "127.0.0.1:7400" in (await people.runnel("status")).out
    status = (await people.runnel("status", "--json")).document
    assert isinstance(status, dict)
    assert status["clients_attached"] == 2
    await people.start()
    for number, client in enumerate(("site-1", "site-2")):
        people.reducer.lines.append(
            LogView(
                id=number,
                session="ses-000000",
                round=1,
                work="train",
                client=client,
                at=NOW,
                stream="stdout",
                text=f"[bold]{client}",
            )
        )
    logs = await people.runnel("session", "logs", "ses-000000", "--client", "site-2", "--round", "1")
    assert logs.out.endswith("round 1 site-2 train stdout: [bold]site-2\n")
    assert "site-1" not in logs.out


async def test_the_token_comes_from_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, insecure=False) as served:
        people = People(reducer=served.reducer, url=served.url, folder=tmp_path, capsys=capsys)
        monkeypatch.setenv("RUNNEL_TOKEN", OPERATOR_TOKEN)
        assert (await people.runnel("status")).status == 0
        monkeypatch.setenv("RUNNEL_TOKEN", "wrong")
        refused = await people.runnel("status", "--json")
        assert (refused.status, refused.out) == (1, "")
        assert json.loads(refused.err)["error"]["code"] == "unauthenticated"
        assert "wrong" not in refused.err
        assert (await people.runnel("token", "list", "--token", VIEWER_TOKEN)).status == 1


async def test_nobody_there(people: People) -> None:
    people.url = "http://127.0.0.1:9"
    said = await people.runnel("session", "list")
    assert (said.status, said.out) == (1, "")
    assert "http://127.0.0.1:9 does not answer" in said.err
    assert "RUNNEL_URL" in said.err
