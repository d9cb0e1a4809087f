"""Tasks at the client ``hub`` of a network, to their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from tests.eventually import eventually
from tests.network.local_network import LocalNetwork


async def output_at_hub(net: LocalNetwork, spec: Mapping[str, Any]) -> httpx.Response:
    """Run a task at the hub and return its file ``output``; it has to be done."""
    answer = await net.http.post("/tasks", json={"spec": spec, "sites": ["hub"]})
    assert answer.status_code == 201, answer.text
    task = answer.json()["task"]

    async def look() -> Any:
        shown = (await net.http.get(f"/tasks/{task}")).json()
        return shown["runs"][0] if shown["finished_at"] else None

    run = await eventually(look, timeout_s=60)
    said = (await net.http.get(f"/runs/{run['run']}/files/stdout")).text
    assert run["state"] == "done", f"{run}\n{said}"
    return await net.http.get(f"/runs/{run['run']}/files/output")
