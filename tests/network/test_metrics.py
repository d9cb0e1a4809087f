"""What Prometheus reads of each component, by real requests."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runnel.client.metrics import CLIENT_METRICS
from runnel.combiner.metrics import COMBINER_METRICS
from runnel.common.errors import BadSettings, Conflict, EntryPointFailed, RunnelError
from runnel.common.metrics import LoopLag, Metric, MetricsPage, MetricsServer, Sample, folder_samples
from runnel.common.metrics.values import MetricKind
from runnel.common.protocol import TaskOrder
from runnel.reducer.domain.values import DEFAULT_ORGANISATION, Role
from runnel.reducer.http.metrics import metrics_route
from runnel.reducer.metrics import REDUCER_METRICS
from runnel.reducer.service import Caller
from tests.doubles.reducer_service import InMemoryReducer
from tests.doubles.serving import serving
from tests.doubles.task_client import TaskClient
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork, network, write_package

pytestmark = [pytest.mark.network, pytest.mark.timeout(60)]

ROOT = Path(__file__).parents[2]
COMPONENTS = {"reducer": REDUCER_METRICS, "combiner": COMBINER_METRICS, "client": CLIENT_METRICS}
ROW = re.compile(r"^\| `(runnel_\w+)` \| (\w+) \| ([\w`, ]*) \| ([\w, ]+) \| (.+) \|$", re.MULTILINE)
DASHBOARD = ROOT / "deploy" / "grafana" / "runnel.json"

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def parsed(text: str) -> Values:
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(values: Values, name: str, **labels: str) -> float:
    return values[name, frozenset(labels.items())]


def told(metric: Metric) -> set[str]:
    """Return the names under which queries find it."""
    return (
        {metric.name + end for end in ("_bucket", "_count", "_sum")}
        if metric.kind.value == "histogram"
        else {metric.name}
    )


async def scrape(url: str) -> str:
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.get(url)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return answer.text


async def test_a_session_shows_in_the_metrics_of_every_component(tmp_path: Path) -> None:
    at_combiner, at_client = free_address(), free_address()
    async with network(tmp_path, combiners=0, clients=0) as net:
        await net.start_combiner("c1", metrics=at_combiner)
        await net.start_client("site-1", metrics=at_client)
        await net.start_client("site-2")
        package = await net.push_package(write_package(tmp_path / "package"))
        seed = await net.push_model({"w": np.zeros(20_000)})  # too large to travel within messages
        session = await net.start_session(package, seed, rounds=2, min_clients=2)
        assert (await net.until_ended(session))["status"] == "finished"

        async def all_settled() -> bool:  # a client hears of it after the session has ended
            client = parsed(await scrape(f"http://{at_client}/metrics"))
            return value(client, "runnel_settlements_total", settlement="counted") == 4

        await eventually(all_settled)
        urls = {"reducer": net.reducer.url, "combiner": f"http://{at_combiner}", "client": f"http://{at_client}"}
        texts = {name: await scrape(f"{url}/metrics") for name, url in urls.items()}
    for name, text in texts.items():
        values = parsed(text)
        exported = {key for key, _ in values if key.startswith("runnel_")}
        assert exported == {each for metric in COMPONENTS[name] for each in told(metric)}
        assert value(values, "runnel_info", component=name, version="0.1.0") == 1
        assert value(values, "runnel_disk_free_bytes") > 0
        assert value(values, "process_resident_memory_bytes") > 1e6
        labels = {label for _, pairs in values for label, _ in pairs}
        assert labels.isdisjoint({"client", "session", "node"})
        lint(text)
    reducer, combiner, client = (parsed(texts[name]) for name in COMPONENTS)
    assert value(reducer, "runnel_rounds_committed_total") == 2
    assert value(reducer, "runnel_updates_total", outcome="counted") == 4
    assert value(reducer, "runnel_updates_total", outcome="failed") == 0
    assert value(reducer, "runnel_round_seconds_count") == 2
    assert 0 < value(reducer, "runnel_round_seconds_sum") < 60
    for phase in ("selecting", "training", "reducing", "validating"):
        assert value(reducer, "runnel_round_phase_seconds_bucket", phase=phase, le="+Inf") == 2
    assert value(reducer, "runnel_sessions_ended_total", status="finished") == 1
    assert value(reducer, "runnel_attached_nodes", kind="client") == 2
    assert value(reducer, "runnel_attached_nodes", kind="combiner") == 1
    assert value(reducer, "runnel_folder_bytes", folder="database") > 0
    assert value(reducer, "runnel_folder_files", folder="blobs") >= 4  # the package, the seed, two models
    assert value(combiner, "runnel_attached_nodes", kind="client") == 2
    assert value(combiner, "runnel_folded_reports_total", outcome="folded") == 4
    assert value(client, "runnel_work_total", work="train", outcome="done") == 2
    assert value(client, "runnel_settlements_total", settlement="counted") == 4
    for values in (combiner, client):
        assert value(values, "runnel_attached") == 1
    # What is served above is what is fetched below, and pushed what is received.
    assert value(reducer, "runnel_served_bytes_total") == value(combiner, "runnel_fetched_bytes_total") > 3 * 160_000
    assert value(reducer, "runnel_received_bytes_total") == value(combiner, "runnel_pushed_bytes_total") == 2 * 160_000
    assert value(client, "runnel_fetched_bytes_total") > 3 * 160_000
    assert (
        value(combiner, "runnel_received_bytes_total") == 2 * value(client, "runnel_pushed_bytes_total") > 4 * 160_000
    )


async def test_tasks_show_in_the_metrics_and_no_client_adds_to_their_labels(tmp_path: Path) -> None:
    def fails(order: TaskOrder) -> dict[str, bytes]:
        if "with a code of its own" in order.spec:
            raise Invented("A code that only this client knows.")
        raise EntryPointFailed("It ended with 3.")

    async with LocalNetwork(tmp_path) as net, AsyncExitStack() as stack:

        async def client(name: str, **how: Any) -> TaskClient:
            return await stack.enter_async_context(TaskClient(net.reducer.rpc_address, name, **how))

        good = await client("good", produce=lambda _: {"output": bytes(300), "stdout": b"x"})
        await client("bad", produce=fails)
        await client("careful", review=True)
        await net.until_attached("good", "bad", "careful")
        async with TaskClient(net.reducer.rpc_address, "away"):
            await net.until_attached("away")
        good.gate.clear()

        async def start(name: str, *sites: str) -> None:
            wanted = {"spec": {"name": name, "executors": [{"image": "a:1"}]}, "sites": sites}
            assert (await net.http.post("/tasks", json=wanted)).status_code == 201

        await start("everywhere", "good", "bad", "careful", "away")
        await start("with a code of its own", "bad")

        async def values_when(name: str, number: float, **labels: str) -> Values:
            async def look() -> Values | None:
                values = parsed(await scrape(f"{net.reducer.url}/metrics"))
                return values if values.get((name, frozenset(labels.items()))) == number else None

            found = await eventually(look)
            assert found is not None
            return found

        await values_when("runnel_open_runs", 1, state="running")
        await values_when("runnel_runs_ended_total", 1, state="failed", code="other")
        await values_when("runnel_runs_ended_total", 1, state="failed", code="exit_status")
        before = await values_when("runnel_open_runs", 1, state="awaiting-release")
        good.gate.set()
        after = await values_when("runnel_runs_ended_total", 1, state="done", code="")
    assert value(before, "runnel_open_runs", state="queued") == 1
    assert value(before, "runnel_open_tasks") == 1
    assert 0 < value(before, "runnel_oldest_waiting_run_seconds") < 60
    assert value(before, "runnel_runs_begun_total") == value(before, "runnel_run_wait_seconds_count") == 4
    assert value(before, "runnel_runs_ended_total", state="failed", code="exit_status") == 1
    assert value(after, "runnel_run_seconds_count") == 3
    assert value(after, "runnel_result_bytes_total") == 301
    codes = {
        label for name, pairs in after if name == "runnel_runs_ended_total" for label in pairs if label[0] == "code"
    }
    assert codes == {("code", ""), ("code", "exit_status"), ("code", "other")}


class Invented(RunnelError):
    """Of a client that has codes of its own."""

    code = "invented_by_a_client"


def lint(text: str) -> None:
    """Let Prometheus' own tool look at it, where that is installed."""
    if (program := shutil.which("promtool")) is not None:
        checked = subprocess.run([program, "check", "metrics"], input=text.encode(), capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, b""), checked.stderr.decode()


# ---- who may read


class Strict(InMemoryReducer):
    """Knows a token of another organisation too."""

    async def authenticate(self, bearer: str | None, *, client_id: str | None = None) -> Caller:
        if bearer == "elsewhere":
            return Caller(token_id="tok-e", role=Role.OPERATOR, organisation="elsewhere")
        if bearer == "node":
            return Caller(token_id="tok-n", role=Role.CLIENT, organisation=DEFAULT_ORGANISATION)
        return await super().authenticate(bearer)


EMPTY: list[Sample] = []


async def nothing() -> list[Sample]:
    return EMPTY


async def test_beyond_the_loopback_it_takes_a_token_of_the_network(tmp_path: Path) -> None:
    from fastapi import FastAPI

    from runnel.reducer.http import problems
    from tests.doubles.reducer_service import VIEWER_TOKEN

    page = MetricsPage((), nothing)
    answers: dict[bool, list[int]] = {}
    for open_to_all in (False, True):
        app = FastAPI()
        problems.install(app)
        app.include_router(metrics_route(page, Strict(tmp_path), open_to_all=open_to_all))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            given = [None, "wrong", "node", "elsewhere", VIEWER_TOKEN]
            headers = [{} if token is None else {"Authorization": f"Bearer {token}"} for token in given]
            answers[open_to_all] = [(await http.get("/metrics", headers=each)).status_code for each in headers]
    assert answers == {False: [401, 401, 403, 403, 200], True: [200] * 5}


async def test_without_metrics_there_is_no_such_page(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, httpx.AsyncClient() as http:
        assert (await http.get(f"{served.url}/metrics")).status_code == 404


# ---- the small server


async def exchange(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_small_server_serves_one_page_and_nothing_else() -> None:
    ticks = Metric(name="runnel_ticks_total", kind=MetricKind.COUNTER, help="Ticks.")

    async def read() -> list[Sample]:
        return [ticks.sample(3)]

    async with MetricsServer(MetricsPage((ticks,), read), "127.0.0.1", 0) as server:
        good = await exchange(server.port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"runnel_ticks_total 3.0" in good
        head = await exchange(server.port, b"HEAD /metrics?x=1 HTTP/1.1\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"runnel_ticks" not in head
        assert (await exchange(server.port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert (await exchange(server.port, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405")
        assert (await exchange(server.port, b"\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert await exchange(server.port, b"x" * 100_000) == b""  # no end of its head
        # Who connects and says nothing does not keep others out, nor the server from its end.
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
        assert b"runnel_ticks_total 3.0" in await exchange(server.port, b"GET /metrics HTTP/1.1\r\n\r\n")
        with pytest.raises(Conflict, match="listens on"):
            await MetricsServer(MetricsPage((), nothing), "127.0.0.1", server.port).__aenter__()
    for _, writer in silent:
        writer.close()
    with pytest.raises(BadSettings, match="metrics"):
        await MetricsServer(MetricsPage((), nothing), "192.0.2.1", 0).__aenter__()


async def test_the_lag_of_the_loop_is_the_longest_since_the_last_look() -> None:
    lag = LoopLag()
    assert lag.take() == 0
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.6
    while loop.time() < until:
        pass  # nothing else gets its turn meanwhile
    found: list[float] = []

    def late() -> bool:
        found.append(lag.take())
        return found[-1] > 0.2

    await eventually(late)
    assert lag.take() < max(found)
    lag.close()


def test_folders_are_measured_with_all_that_is_below(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"12345")
    (tmp_path / "d").write_bytes(b"67")
    samples = folder_samples(tmp_path, {"both": [tmp_path / "a", tmp_path / "d"], "none": [tmp_path / "no"]})
    found = {(each.metric.name, *each.labels): each.value for each in samples}
    assert found["runnel_folder_bytes", "both"] == 7
    assert found["runnel_folder_files", "both"] == 2
    assert found["runnel_folder_files", "none"] == 0


# ---- what people are told


def test_the_table_of_metrics_is_what_is_exported() -> None:
    rows = {row[0]: row[1:] for row in ROW.findall((ROOT / "docs" / "operator.md").read_text())}
    wanted: dict[str, tuple[str, str, str, str]] = {}
    for component, metrics in COMPONENTS.items():
        for metric in metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            where = wanted[metric.name][2] + f", {component}" if metric.name in wanted else component
            helped = wanted[metric.name][3] if metric.name in wanted else metric.help
            wanted[metric.name] = (metric.kind.value, labels, where, helped)
    assert rows == wanted


def queries(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node[key] for key in ("expr", "query") if isinstance(node.get(key), str)]
        return own + [each for child in node.values() for each in queries(child)]
    return [each for child in node for each in queries(child)] if isinstance(node, list) else []


def test_the_dashboard_asks_for_what_is_exported() -> None:
    names = {each for metrics in COMPONENTS.values() for metric in metrics for each in told(metric)}
    asked = {name for query in queries(json.loads(DASHBOARD.read_text())) for name in re.findall(r"runnel_\w+", query)}
    assert asked - names == set()
    unasked = {metric.name for metrics in COMPONENTS.values() for metric in metrics if not told(metric) & asked}
    assert unasked == set()
