"""Routes, errors, paging, idempotency and files of the HTTP interface, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from runnel.reducer.http import round_document
from tests.doubles.reducer_service import VIEWER_TOKEN
from tests.doubles.serving import Served, serving
from tests.eventually import eventually

pytestmark = pytest.mark.network


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as it:
        yield it


async def seeded(served: Served) -> dict[str, Any]:
    package = (await served.http.post("/packages", content=b"archive", params={"filename": "digits.tar.gz"})).json()
    model = (await served.http.post("/models", content=b"model")).json()
    return {"package": package["digest"], "seed": model["model"], "rounds": 3}


async def test_a_session_has_the_documented_shape(served: Served) -> None:
    wanted = await seeded(served) | {
        "name": "first",
        "sample": 0.5,
        "stop_when": "accuracy>=0.97",
        "client_settings": {"lr": 0.1, "deep": {"a": [1, None]}},
        "strategy": "fedadam",
        "strategy_options": {"tau": 0.01},
    }
    started = await served.http.post("/sessions", json=wanted)
    assert started.status_code == 201, started.text
    session = started.json()["session"]
    served.reducer.commit(session, round_document)
    served.reducer.commit(session, round_document, metrics={"loss": float("nan")})
    served.reducer.finish(session)
    shown = (await served.http.get(f"/sessions/{session}")).json()
    assert shown["status"] == "finished"
    assert shown["reason"] is None
    assert shown["config"]["stop_when"] == "accuracy>=0.97"
    assert shown["config"]["sample"] == 0.5
    assert shown["config"]["client_settings"] == wanted["client_settings"]
    first = shown["rounds"][0]
    assert {"round", "seconds", "updates", "late", "failed", "model", "metrics"} <= first.keys()
    assert first["metrics"]["accuracy"] == 0.5
    assert first["clients"] == []
    assert shown["rounds"][1]["metrics"] == {"loss": None}
    assert shown["model"] == shown["rounds"][1]["model"]
    with_clients = (await served.http.get(f"/sessions/{session}", params={"clients": "true"})).json()
    assert with_clients["rounds"][0]["clients"][0]["weight"] == 100.0
    listed = (await served.http.get("/sessions")).json()
    assert [item["session"] for item in listed["items"]] == [session]
    assert listed["next"] is None


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"rounds": 0}, "rounds", "greater than or equal to 1"),
        ({"rounds": "5"}, "rounds", "came '5'"),
        ({"rounds": True}, "rounds", "came True"),
        ({"round": 5}, "round", "no such field"),
        ({"sample": 1.5}, "sample", "1.5"),
        ({"sample": 0}, "sample", "fraction above 0"),
        ({"sample": 3, "min_clients": 4}, "min_clients", "at most sample"),
        ({"buffer": 2, "min_clients": 3}, "min_clients", "at most buffer"),
        ({"stop_when": "accuracy=0.9"}, "stop_when", "none of >=, >, <=, <"),
        ({"stop_when": "accuracy>0.9", "validate_every": 0}, "stop_when", "validate_every"),
        ({"round_timeout_s": -1}, "round_timeout_s", "greater than 0"),
        ({"client_settings": [1]}, "client_settings", "came [1]"),
        ({"strategy_options": {"tau": "x"}}, "strategy_options.tau", "came 'x'"),
    ],
)
async def test_a_bad_option_is_refused_by_name(served: Served, change: dict[str, Any], field: str, says: str) -> None:
    answer = await served.http.post("/sessions", json=await seeded(served) | change)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == "invalid_input"
    assert problem["detail"].startswith(f"{field}:")
    assert says in problem["detail"] + problem["hint"]
    assert "session" not in served.reducer.effects


async def test_an_unknown_strategy_tells_which_there_are(served: Served) -> None:
    answer = await served.http.post("/sessions", json=await seeded(served) | {"strategy": "fedsgd"})
    assert answer.status_code == 422
    assert "fedavgm" in answer.text


async def test_all_refused_fields_are_listed(served: Served) -> None:
    answer = await served.http.post("/sessions", json={"rounds": 0, "colour": 1})
    assert {item["field"] for item in answer.json()["errors"]} == {"package", "seed", "rounds", "colour"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/sessions/ses-000099", 404, "not_found"),
        ("DELETE", "/sessions", 405, "invalid_input"),
        ("GET", "/models?limit=0", 422, "invalid_input"),
        ("GET", "/sessions/ses-000099/events", 404, "not_found"),
        ("GET", "/events?after=x", 422, "invalid_input"),
    ],
)
async def test_every_error_is_a_problem(served: Served, method: str, path: str, status: int, code: str) -> None:
    answer = await served.http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["instance"] == f"/api/v1{path.partition('?')[0]}"
    assert problem["detail"]


async def test_broken_json_and_too_much_of_it_are_problems(served: Served) -> None:
    headers = {"Content-Type": "application/json"}
    broken = await served.http.post("/sessions", content=b'{"rounds": ', headers=headers)
    assert (broken.status_code, broken.json()["code"]) == (422, "invalid_input")
    large = await served.http.post("/sessions", content=b'"' + b"x" * (2 << 20) + b'"', headers=headers)
    assert (large.status_code, large.json()["code"]) == (413, "too_large")


async def test_an_unexpected_error_tells_an_incident_and_nothing_else(served: Served) -> None:
    served.reducer.broken = True
    with capture_logs() as logs:
        answer = await served.http.get("/status")
    assert answer.status_code == 500
    incident = answer.json()["fields"]["incident"]
    assert incident in answer.json()["detail"]
    assert [entry["incident"] for entry in logs] == [incident]
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text


async def test_a_token_is_asked_for_and_its_role_counts(tmp_path: Path) -> None:
    async with serving(tmp_path, insecure=False) as served:
        without = await served.http.get("/status", headers={"Authorization": ""})
        assert without.status_code == 401
        assert without.headers["www-authenticate"].startswith("Bearer")
        assert without.json()["code"] == "unauthenticated"
        wrong = await served.http.get("/status", headers={"Authorization": "Bearer nonsense"})
        assert wrong.status_code == 401
        viewer = {"Authorization": f"Bearer {VIEWER_TOKEN}"}
        assert (await served.http.get("/status", headers=viewer)).status_code == 200
        refused = await served.http.post("/tokens", json={"role": "client"}, headers=viewer)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert (await served.http.get("/healthz", headers={"Authorization": ""})).json() == {"status": "ok"}


async def test_pages_follow_each_other(served: Served) -> None:
    for number in range(7):
        served.reducer.add_model_entry("ab" * 32, number, session="ses-1" if number % 2 else None)
    seen, cursor = [], None
    while True:
        page = (await served.http.get("/models", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))).json()
        assert len(page["items"]) <= 3
        seen += [item["model"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == [f"mod-{number:06d}" for number in reversed(range(7))]
    of_session = (await served.http.get("/models", params={"session": "ses-1"})).json()
    assert len(of_session["items"]) == 3


# ---- files


async def test_an_upload_is_streamed_and_comes_back_as_it_was(served: Served) -> None:
    data = bytes(range(256)) * 40_000
    answer = await served.http.post("/packages", content=data, params={"filename": "big.tar.gz"})
    assert answer.status_code == 201
    digest = answer.json()["digest"]
    assert digest == hashlib.sha256(data).hexdigest()
    assert len(served.reducer.blocks) > 5
    assert max(served.reducer.blocks) < 3 << 20
    content = await served.http.get(f"/packages/{digest[:8]}/content")
    assert content.content == data
    assert content.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
    part = await served.http.get(f"/packages/{digest}/content", headers={"Range": "bytes=256-511"})
    assert (part.status_code, part.content) == (206, bytes(range(256)))


async def test_a_body_that_is_not_what_was_announced_is_refused(served: Served) -> None:
    wrong = f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"
    answer = await served.http.post("/models", content=b"model", headers={"Content-Digest": wrong})
    assert (answer.status_code, answer.json()["code"]) == (422, "corrupt_data")
    nonsense = await served.http.post("/models", content=b"model", headers={"Content-Digest": "sha-256=:x:"})
    assert (nonsense.status_code, nonsense.json()["code"]) == (422, "invalid_input")
    assert served.reducer.effects == []


async def test_an_upload_refused_half_way_is_told_why(served: Served) -> None:
    """A caller that sends everything before it reads gets the answer, not a connection reset."""
    served.reducer.refuse_packages = True
    host, _, port = served.server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    size = 64 << 20
    head = f"POST /api/v1/packages HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    for _ in range(64):
        writer.write(bytes(1 << 20))
        await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    lines, _, body = answer.partition(b"\r\n\r\n")
    assert lines.startswith(b"HTTP/1.1 422 ")
    problem = json.loads(body)
    assert (problem["code"], problem["fields"]) == ("bad_package", {"member": "train.py"})
    assert len(served.reducer.blocks) == 1


# ---- idempotency


async def test_a_repeated_post_has_one_effect(served: Served) -> None:
    wanted = await seeded(served)
    key = {"Idempotency-Key": "k-1"}
    first = await served.http.post("/sessions", json=wanted, headers=key)
    again = await served.http.post("/sessions", json=wanted, headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert served.reducer.effects.count("session") == 1
    other = await served.http.post("/sessions", json=wanted | {"rounds": 9}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert (await served.http.post("/sessions", json=wanted)).json()["session"] != first.json()["session"]


async def test_a_second_post_waits_for_the_first_that_is_at_work(served: Served) -> None:
    wanted = await seeded(served)
    served.reducer.gate.clear()
    served.reducer.authentications = 0
    key = {"Idempotency-Key": "k-1"}
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(served.http.post("/sessions", json=wanted, headers=key))
        await eventually(lambda: served.reducer.waiting == 1)
        second = tasks.create_task(served.http.post("/sessions", json=wanted, headers=key))
        await eventually(lambda: served.reducer.authentications == 2)
        served.reducer.gate.set()
    assert first.result().json() == second.result().json()
    assert served.reducer.effects.count("session") == 1


async def test_an_error_is_not_remembered(served: Served) -> None:
    wanted = await seeded(served)
    key = {"Idempotency-Key": "k-1"}
    missing = await served.http.post("/sessions", json=wanted | {"seed": "mod-0099"}, headers=key)
    assert missing.status_code == 404
    assert (await served.http.post("/sessions", json=wanted, headers=key)).status_code == 201


async def test_a_tokens_secret_comes_again_but_is_not_stored(served: Served) -> None:
    key = {"Idempotency-Key": "k-1"}
    first = await served.http.post("/tokens", json={"role": "client", "name": "a"}, headers=key)
    assert first.json()["token"].startswith("secret-of-")
    again = await served.http.post("/tokens", json={"role": "client", "name": "a"}, headers=key)
    assert again.json() == first.json()
    assert served.reducer.effects.count("token") == 1
    assert all(b"secret-of-" not in body for _, _, body in served.reducer.remembered.values())


@pytest.mark.parametrize("key", ["", "x" * 201])
async def test_a_bad_key_is_refused(served: Served, key: str) -> None:
    answer = await served.http.post("/sessions/ses-1/stop", headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert "Idempotency-Key" in answer.json()["detail"]


# ---- the rest


async def test_tokens_nodes_logs_and_status(served: Served) -> None:
    made = (await served.http.post("/tokens", json={"role": "client", "name": "site-1", "ttl_s": 60})).json()
    assert made["role"] == "client"
    refused = await served.http.post("/tokens", json={"role": "king"})
    assert refused.status_code == 422
    assert "'operator'" in refused.json()["detail"]
    revoked = (await served.http.delete(f"/tokens/{made['id']}")).json()
    assert revoked["revoked_at"] is not None
    assert (await served.http.get("/tokens")).json()["items"][0]["token"] is None
    assert (await served.http.get("/status")).json()["clients_attached"] == 2
    assert (await served.http.get("/nodes")).json() == {"items": [], "next": None}


async def test_stop_resume_extend(served: Served) -> None:
    session = (await served.http.post("/sessions", json=await seeded(served))).json()["session"]
    early = await served.http.post(f"/sessions/{session}/resume")
    assert (early.status_code, early.json()["code"]) == (409, "illegal_state")
    assert (await served.http.post(f"/sessions/{session}/stop")).json()["status"] == "stopped"
    assert (await served.http.post(f"/sessions/{session}/resume")).json()["status"] == "running"
    extended = await served.http.post(f"/sessions/{session}/extend", json={"rounds": 2})
    assert extended.json()["config"]["rounds"] == 5
    assert (await served.http.post(f"/sessions/{session}/extend", json={"rounds": 0})).status_code == 422


async def test_the_interface_describes_itself(served: Served) -> None:
    document = (await served.http.get("/openapi.json")).json()
    assert document["info"]["title"] == "Runnel"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            assert "200" in operation["responses"] or "201" in operation["responses"]
    posts = [operations["post"] for operations in document["paths"].values() if "post" in operations]
    assert posts
    assert all(any(p["name"] == "Idempotency-Key" for p in post["parameters"]) for post in posts)
    assert document["paths"]["/api/v1/packages"]["post"]["requestBody"]["content"].keys() == {
        "application/octet-stream"
    }


async def test_rounds_in_events_and_sessions_are_the_same(served: Served) -> None:
    session = (await served.http.post("/sessions", json=await seeded(served))).json()["session"]
    served.reducer.commit(session, lambda view: round_document(replace(view, clients=())))
    shown = (await served.http.get(f"/sessions/{session}")).json()["rounds"][0]
    headers = {"Accept": "application/json"}
    events = (await served.http.get(f"/sessions/{session}/events", headers=headers)).json()["items"]
    assert [event["kind"] for event in events] == ["session.created", "round.committed"]
    assert events[1]["data"] == shown
