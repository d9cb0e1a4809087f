"""Tasks are judged by the policy of now, not by that of the client's start."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnel.client.audit import AUDIT_FILE, AuditLog
from tests.docker_engine import engine_host
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork

pytestmark = pytest.mark.docker

SPEC = {"name": "count", "executors": [{"image": "analysis:1"}]}


async def test_a_policy_that_changes_judges_the_next_task(tmp_path: Path) -> None:
    host, policy = engine_host(), tmp_path / "policy.toml"

    async def refusal(running: LocalNetwork) -> str:
        answer = await running.http.post("/tasks", json={"spec": SPEC, "sites": ["site"]})
        assert answer.status_code == 201, answer.text
        address = f"/tasks/{answer.json()['task']}"

        async def over() -> bool:
            return (await running.http.get(address)).json()["finished_at"] is not None

        await eventually(over)
        return (await running.http.get(address)).text

    def policies() -> int:
        return sum(each.kind == "policy.set" for each in AuditLog(tmp_path / "site" / AUDIT_FILE).records())

    async with LocalNetwork(tmp_path) as running:
        policy.write_text('approve = "anything"\n')
        await running.start_client("site", policy=policy, docker_host=host)
        assert "has no table [tasks]" in await refusal(running)
        policy.write_text('approve = "anything"\n[tasks]\nimages = ["other:.*"]\n')
        await eventually(lambda: policies() == 2)
        assert "no pattern matches the image analysis:1" in await refusal(running)
