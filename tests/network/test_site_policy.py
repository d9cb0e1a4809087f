"""What a site lets run, with a real reducer and real clients: awaiting approval, refused, signed, hours, audit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.cli.main import main
from runnel.client.audit import AUDIT_FILE, AuditLog
from runnel.compute_package import new_key, pack, public_key_text, sign
from runnel.reducer.domain.selection import select_clients
from runnel.reducer.domain.values import SessionConfig
from tests.doubles.said import Said
from tests.eventually import eventually
from tests.network.local_network import ADD_CONSTANT, LocalNetwork, network, write_package

pytestmark = pytest.mark.network

SEED = {"w": np.zeros(3, np.float32)}
MORNING = datetime(2026, 3, 2, 7, 59, tzinfo=UTC)  # a Monday


class Site:
    """The people of ``site-2`` at their keyboard."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.state = folder / "site-2"
        self.policy = folder / "policy.toml"
        self._capsys = capsys

    def says(self, text: str) -> Path:
        self.policy.write_text(text)
        return self.policy

    async def runnel(self, *arguments: str) -> Said:
        self._capsys.readouterr()
        status = await asyncio.to_thread(main, ["client", *arguments, "--state", str(self.state), "--json"])
        captured = self._capsys.readouterr()
        # The network logs in this process too, and its lines begin with a time.
        mine = [line for line in captured.out.splitlines(keepends=True) if not line.startswith("20")]
        return Said(status=status, out="".join(mine), err=captured.err)

    async def waiting(self) -> list[dict[str, Any]]:
        said = await self.runnel("review")
        return list(said.document)

    def audit(self, kind: str) -> list[dict[str, Any]]:
        return [dict(each.data) for each in AuditLog(self.state / AUDIT_FILE).records() if each.kind == kind]


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(tmp_path, capsys)


async def contribution(running: LocalNetwork, session: str, number: int = 1) -> dict[str, Any]:
    """Return what site-2 gave to the training of a round; empty if it was not asked."""
    view = await running.session(session, clients=True)
    rounds = {each["round"]: each for each in view["rounds"]}
    clients = rounds[number]["clients"] if number in rounds else []
    return next((each for each in clients if (each["client"], each["work"]) == ("site-2", "train")), {})


async def until_status(running: LocalNetwork, session: str, status: str, number: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with asyncio.timeout(30):
        while found.get("status") != status:
            await asyncio.sleep(0.05)
            found = await contribution(running, session, number)
    return found


async def kinds(running: LocalNetwork, session: str) -> list[str]:
    answer = await running.http.get(f"/sessions/{session}/events", headers={"Accept": "application/json"})
    return [each["kind"] for each in answer.json()["items"]]


@pytest.mark.parametrize("combiners", [0, 1])
async def test_a_site_that_awaits_approval_takes_part_once_it_approves(
    tmp_path: Path, site: Site, combiners: int
) -> None:
    policy = site.says('approve = "signed"\n')
    async with network(tmp_path, combiners=combiners, clients=1) as running:
        await running.start_client("site-2", step=3.0, policy=policy)
        package = await running.push_package(write_package(tmp_path / "p"))
        seed = await running.push_model(SEED)
        session = await running.start_session(package, seed, rounds=2, min_clients=2, round_timeout_s=60)
        told = await until_status(running, session, "awaiting")
        assert told["error_code"] == "awaiting_approval"
        assert "runnel client review approve" in told["error"]
        assert not site.audit("run.started")

        (waiting,) = await site.waiting()
        assert waiting["digest"] == package
        assert waiting["asking"] == [f"default/{session}"]
        shown = (await site.runnel("review", "show", package[:8])).document
        assert [each["name"] for each in shown["files"]] == ["train.py", "validate.py"]
        assert shown["entry_points"]["train"] == "python train.py"

        assert (await site.runnel("review", "approve", package[:8])).status == 0
        view = await running.until_ended(session)
        assert (view["status"], [each["updates"] for each in view["rounds"]]) == ("finished", [2, 2])
        assert [each["awaiting"] for each in view["rounds"]] == [0, 0]
        np.testing.assert_array_equal((await running.model(view["model"]))["w"], np.full(3, 4.0, np.float32))
        happened = await kinds(running, session)
        assert "client.awaiting" in happened
        assert "round.retried" not in happened
        assert "client.failed" not in happened
        assert await site.waiting() == []
        assert [each["package"] for each in site.audit("review.approved")] == [package]
        assert (await site.runnel("audit")).document["verified"] >= 8


async def test_rounds_go_on_without_a_site_that_waits_and_ask_it_no_more(tmp_path: Path, site: Site) -> None:
    policy = site.says('approve = "reviewed"\n')
    async with network(tmp_path, combiners=1, clients=1) as running:
        await running.start_client("site-2", step=3.0, policy=policy)
        package = await running.push_package(write_package(tmp_path / "p"))
        seed = await running.push_model(SEED)
        one = SessionConfig(rounds=1, sample=1)
        drawn = next(n for n in range(99) if select_clients(one, 1, ["site-1", "site-2"], n) == ["site-2"])
        session = await running.start_session(package, seed, rounds=1, sample=1, random_seed=drawn, retries=0)
        (only,) = (await running.until_ended(session))["rounds"]
        assert (only["updates"], only["awaiting"]) == (1, 1), "another was asked in its place"

        session = await running.start_session(package, seed, rounds=1000)
        await running.until_round(session, 3)
        view = await running.session(session)
        first, second, third = view["rounds"][:3]
        assert (first["updates"], first["awaiting"], first["failed"], first["late"]) == (1, 1, 0, 0)
        assert all((each["updates"], each["awaiting"], each["late"]) == (1, 0, 0) for each in (second, third))
        assert await contribution(running, session, 2) == {}
        # Another version is another question to the site.
        other = await running.push_package(write_package(tmp_path / "other", weight="2"))
        (await running.http.post(f"/sessions/{session}/update", json={"package": other})).raise_for_status()

        async def asked() -> bool:
            return {each["digest"] for each in await site.waiting()} == {package, other}

        await eventually(asked, timeout_s=30)
        await site.runnel("review", "approve", other)

        async def both() -> bool:
            view = await running.session(session)
            return any(each["updates"] == 2 for each in view["rounds"])

        await eventually(both, timeout_s=30)
        (await running.http.post(f"/sessions/{session}/stop")).raise_for_status()
        await running.until_ended(session)


async def test_what_the_policy_refuses_fails_with_the_rule(tmp_path: Path, site: Site) -> None:
    async with LocalNetwork(tmp_path) as running:
        package = await running.push_package(write_package(tmp_path / "p"))
        seed = await running.push_model(SEED)
        await running.start_client("site-2", policy=site.says('approve = "anything"\npackages = ["hospital-.*"]\n'))
        session = await running.start_session(package, seed, rounds=1, retries=0)
        view = await running.until_ended(session)
        assert view["status"] == "failed"
        assert "by its rule packages" in view["reason"]
        assert (await contribution(running, session))["error_code"] == "policy_refused"
        assert [each["rule"] for each in site.audit("package.refused")] == ["packages"]
        await running.stop("site-2")

        await running.start_client("site-2", policy=site.says('approve = "anything"\n'))
        said = await site.runnel("review", "refuse", package, "--reason", "it reads names")
        assert said.status == 0
        view = await running.until_ended(await running.start_session(package, seed, rounds=1, retries=0))
        assert "by its rule review" in view["reason"]
        assert "names" not in view["reason"]
        assert not site.audit("run.started")


async def test_signed_packages_run_and_forged_signatures_do_not(tmp_path: Path, site: Site) -> None:
    ada = public_key_text(new_key(tmp_path / "ada"))
    policy = site.says(f'[signers]\nada = "{ada}"\n')
    async with LocalNetwork(tmp_path) as running:
        await running.start_client("site-2", policy=policy)
        seed = await running.push_model(SEED)
        packed = await asyncio.to_thread(pack, write_package(tmp_path / "p"), tmp_path / "p.tar.gz")
        digest = await running.push_package(tmp_path / "p")
        assert digest == packed.ref.sha256
        signature = sign(digest, tmp_path / "ada")
        body = {"public_key": ada, "signature": signature.signature.hex()}
        session = await running.start_session(digest, seed, rounds=1)
        assert "it is not signed" in (await until_status(running, session, "awaiting"))["error"]
        (await running.http.post(f"/packages/{digest}/signatures", json=body)).raise_for_status()
        view = await running.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        assert {each["signer"] for each in site.audit("run.started")} == {"ada"}

        # A reducer that can't be trusted: another signature in the same name.
        with contextlib.closing(sqlite3.connect(tmp_path / "reducer" / "reducer.db")) as database:
            forged = json.dumps([body | {"signature": "00" * 64}])
            database.execute("UPDATE package SET signatures = ?", (forged,))
            database.commit()
        session = await running.start_session(digest, seed, rounds=1, retries=0)
        view = await running.until_ended(session)
        assert "the signature in the name of ada does not verify" in view["reason"]
        assert len(site.audit("run.started")) == 2


async def test_outside_its_hours_a_site_takes_no_work_until_they_begin(tmp_path: Path, site: Site) -> None:
    now = [MORNING]
    policy = site.says('approve = "anything"\n[[hours]]\ndays = ["mon"]\nfrom = "08:00"\nto = "18:00"\nzone = "UTC"\n')
    async with network(tmp_path, combiners=1, clients=1) as running:
        await running.start_client("site-2", step=3.0, policy=policy, clock=lambda: now[0])
        package = await running.push_package(write_package(tmp_path / "p"))
        seed = await running.push_model(SEED)
        session = await running.start_session(package, seed, rounds=1, min_clients=2, round_timeout_s=60)
        told = await until_status(running, session, "awaiting")
        assert told["error_code"] == "outside_hours"
        assert "2026-03-02 08:00 UTC" in told["error"]
        assert not (site.state / "packages" / "unpacked" / package).exists()
        now[0] += timedelta(minutes=1)
        view = await running.until_ended(session)
        assert (view["status"], view["rounds"][0]["updates"]) == ("finished", 2)
        assert "round.retried" not in await kinds(running, session)


LOOKS = ADD_CONSTANT.replace("import json, os, sys", "import json, os, sys\nprint(sorted(os.environ), flush=True)")


async def test_a_site_writes_down_what_ran_with_which_data(tmp_path: Path, site: Site) -> None:
    torn = site.state / AUDIT_FILE
    site.state.mkdir()
    torn.write_bytes(b'{"seq":1,"at":"2026')
    policy = site.says(
        'approve = "anything"\n[databases]\ndefault = {}\nehr = { packages = ["ehr-.*"] }\n[limits]\ntime_s = 50\n'
    )
    ehr = tmp_path / "ehr"
    ehr.write_text("secret")
    async with LocalNetwork(tmp_path) as running:
        data = {"default": str(tmp_path / "site-2.txt"), "ehr": str(ehr), "more": str(ehr)}
        await running.start_client("site-2", step=2.0, policy=policy, data=data)
        package = await running.push_package(write_package(tmp_path / "p", train=LOOKS))
        session = await running.start_session(package, await running.push_model(SEED), rounds=1)
        view = await running.until_ended(session)
        assert view["status"] == "finished", view["reason"]
        seen: list[str] = []

        async def printed() -> bool:  # lines are written in batches, so they may come after the end
            logs = (await running.http.get(f"/sessions/{session}/logs")).json()["items"]
            seen[:] = [each["text"] for each in logs if "RUNNEL_DATA" in each["text"]]
            return bool(seen)

        await eventually(printed)
        assert "EHR" not in seen[0]
        assert "MORE" not in seen[0]
    healed, started, ended = (site.audit(kind) for kind in ("log.healed", "run.started", "run.ended"))
    assert [each["bytes"] for each in healed] == [19]
    assert [each["entry_point"] for each in started] == ["train", "validate"]
    assert [each["run"] for each in started] == [each["run"] for each in ended]
    assert all(each["databases"] == ["default"] and each["package"] == package for each in started)
    assert all((each["organisation"], each["session"]) == ("default", session) for each in started)
    assert all((each["end"], each["exit_status"]) == ("finished", 0) for each in ended)
    assert ended[0]["bytes_out"] > 3 * 4
    (set_once,) = site.audit("policy.set")
    assert set_once["policy"]["limits"]["time_s"] == 50

    said = await site.runnel("audit", "--since", "1h")
    assert said.status == 0
    assert said.document["verified"] == len(said.document["records"])
    known = said.document["last"]
    lines = torn.read_bytes().splitlines(keepends=True)
    torn.write_bytes(b"".join(lines[:-1]))
    assert (await site.runnel("audit")).status == 0
    cut = await site.runnel("audit", "--contains", known)
    assert cut.status == 1
    torn.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    broken = await site.runnel("audit")
    assert broken.status == 1
    assert "line 3" in broken.err


async def test_a_policy_that_changes_is_followed_and_one_that_is_wrong_is_not(tmp_path: Path, site: Site) -> None:
    refusing = 'approve = "anything"\npackages = ["hospital-.*"]\n'
    policy = site.says(refusing)
    async with network(tmp_path, combiners=1, clients=1) as running:
        await running.start_client("site-2", step=3.0, policy=policy)
        package = await running.push_package(write_package(tmp_path / "p"))
        session = await running.start_session(package, await running.push_model(SEED), rounds=1000)
        await running.until_round(session, 3)
        view = await running.session(session)
        assert [each["failed"] for each in view["rounds"][:3]] == [1, 0, 0], "it is not asked again"
        assert len([kind for kind in await kinds(running, session) if kind == "client.failed"]) == 1

        site.says('approve = "anything"\npackage = [".*"]\n')
        await eventually(lambda: bool(site.audit("policy.rejected")))
        assert "package is no key. Did you mean packages?" in site.audit("policy.rejected")[0]["problem"]

        site.says('approve = "anything"\n[limits]\ntime_s = 40\n')

        async def both() -> bool:
            view = await running.session(session)
            return any(each["updates"] == 2 for each in view["rounds"])

        await eventually(both, timeout_s=30)
        (await running.http.post(f"/sessions/{session}/stop")).raise_for_status()
        await running.until_ended(session)
    first, second = site.audit("policy.set")
    assert (first["policy"]["packages"], second["policy"]["packages"]) == (["hospital-.*"], None)
    assert second["policy"]["limits"]["time_s"] == 40
    assert site.audit("policy.rejected")[0]["kept"] == first["fingerprint"]
