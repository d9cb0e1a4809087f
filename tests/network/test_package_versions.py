"""Several versions of a package in one network, by the commands that people type and by HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from runnel.cli.main import main
from runnel.compute_package import pack
from tests.doubles.said import Said
from tests.eventually import eventually
from tests.network.local_network import ADD_CONSTANT, network, write_package

pytestmark = [pytest.mark.network, pytest.mark.timeout(90)]

ANOTHER_MODEL = ADD_CONSTANT.replace("arrays = {name", 'arrays = {"more_" + name')


async def test_a_session_moves_from_version_to_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with network(tmp_path, clients=2) as net:

        async def runnel(*arguments: str) -> Said:
            capsys.readouterr()
            status = await asyncio.to_thread(main, [*arguments, "--url", net.reducer.url])
            captured = capsys.readouterr()
            # The network logs in this process too, and its lines begin with a time.
            mine = [line for line in captured.out.splitlines(keepends=True) if not line.startswith("20")]
            return Said(status=status, out="".join(mine), err=captured.err)

        scripts = {"one": ADD_CONSTANT, "two": ADD_CONSTANT.replace("+ step)", "+ 10 * step)"), "bad": ANOTHER_MODEL}
        archives = {
            name: (
                await asyncio.to_thread(pack, write_package(tmp_path / name, train=train), tmp_path / f"{name}.tar.gz")
            ).path
            for name, train in scripts.items()
        }
        one = (await runnel("package", "push", str(archives["one"]))).out.strip()
        seed = await net.push_model({"w": np.zeros(3)})
        session = await net.start_session(one, seed, rounds=500, min_clients=2, retries=0)
        await net.until_round(session, 1)

        # A file is pushed first; said twice, it is done once.
        said = await runnel("session", "update", session[:8], "--package", str(archives["two"]), "--json")
        assert said.status == 0, said.err
        two = said.document["package"]
        repeated = [
            await net.http.post(f"/sessions/{session}/update", json={"package": two}, headers={"Idempotency-Key": "k"})
            for _ in range(2)
        ]
        assert [each.status_code for each in repeated] == [200, 200]
        assert repeated[1].headers["Idempotency-Replayed"] == "true"

        async def runs_two() -> bool:
            return any(r["package"] == two and r["seconds"] for r in (await net.session(session))["rounds"])

        await eventually(runs_two, timeout_s=30)

        # Retired, it may be given to nobody; who has it goes on with it.
        said = await runnel("package", "retire", two[:12])
        assert f"{session} goes on with it" in said.out
        refused = await net.http.post("/sessions", json={"package": two, "seed": seed, "rounds": 1})
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert "was retired" in refused.json()["detail"]
        assert refused.headers["content-type"] == "application/problem+json"
        listed = await runnel("package", "list")
        assert "1 (1 run)" in next(line for line in listed.out.splitlines() if two[:16] in line and "retired" in line)
        shown = await runnel("package", "show", two)
        assert all(text in shown.out for text in ("train.py (", "python train.py", "none: the client's own", session))
        assert "may be given" in (await runnel("package", "retire", two, "--undo")).out

        # What is different, between a file here and one of the network.
        diff = await runnel("package", "diff", str(archives["one"]), two, "--json")
        [changed] = diff.document["files"]
        assert changed["name"] == "train.py"
        assert next(line for line in changed["diff"] if "10 * step" in line).startswith("+")
        plain = await runnel("package", "diff", one, two)
        assert "+np.savez(model_out, **{name: (array + 10 * step)" in plain.out

        # Another model is refused from those who give it, and the session goes on with a package that is right.
        said = await runnel("session", "update", session, "--package", str(archives["bad"]))
        assert "from the next round" in said.out
        failed = await net.until_ended(session)
        assert failed["status"] == "failed"
        assert "site-1" in failed["reason"]
        await runnel("session", "update", session, "--package", two)
        going = (await net.http.post(f"/sessions/{session}/resume")).json()
        # The next round may have begun before this is told.
        given_up = next(each for each in going["rounds"] if each["round"] == failed["rounds"][-1]["round"])
        assert (given_up["status"], given_up["model"]) == ("failed", None)
        await net.until_round(session, given_up["round"] + 1)
        view = (await net.http.post(f"/sessions/{session}/stop")).json()

        # Every model is what the package made of the one before that its row names, with the steps 1 and 2.
        page = (await net.http.get("/models", params={"session": session, "limit": 1000})).json()
        models = {model["model"]: model for model in page["items"]}
        committed = [r for r in view["rounds"] if r["model"] is not None and r["seconds"] is not None]
        assert {r["package"] for r in committed} == {one, two}
        value = 0.0
        for each in committed:
            model = models[each["model"]]
            assert model["package"] == each["package"]
            value += {one: 1.5, two: 15.0}[model["package"]]
            assert each["metrics"]["mean"] == value
