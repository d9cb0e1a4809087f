"""A run's way out on a real engine: the hosts that the policy names, and nothing else."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runnel.client.audit import AUDIT_FILE, AuditLog
from runnel.client.domain.egress import egress_host
from runnel.client.domain.policy import ANYTHING
from runnel.client.domain.task_policy import Pull, TaskPolicy
from runnel.common.protocol import RunState
from tests.docker_engine import base_image, engine_host, networks
from tests.doubles.task_network import TaskNetwork, client_of, order, plain, site

pytestmark = pytest.mark.docker

# Names are resolved by the proxy: the container's own network leads to no server of names.
SCRIPT = """
import os, socket, sys, urllib.error, urllib.request
port = sys.argv[1]
def say(what, call):
    try: print(what, call())
    except urllib.error.HTTPError as error: print(what, error.code, error.read().decode().strip())
    except OSError as error: print(what, "no")
proxied = urllib.request.build_opener(urllib.request.ProxyHandler({"http": os.environ["HTTP_PROXY"]}))
say("named:", lambda: proxied.open(f"http://127.0.0.1:{port}/").read().decode())
say("other:", lambda: proxied.open("http://example.org/").read())
say("straight:", lambda: socket.create_connection(("192.0.2.7", 80), 2))
say("resolved:", lambda: socket.gethostbyname("example.org"))
"""


class _Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server on this machine's loopback, which no container reaches."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hello) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


async def test_containers_reach_the_named_hosts_and_nothing_else(tmp_path: Path, port: int) -> None:
    network = TaskNetwork()
    rules = TaskPolicy(pull=Pull.NEVER, egress=(egress_host(f"127.0.0.1:{port}"),))
    policy = dataclasses.replace(ANYTHING, tasks=rules)
    spec = plain(
        base_image(), "python3", "-c", SCRIPT, str(port), executor={"env": {"RES_OPTIONS": "timeout:1 attempts:1"}}
    )
    async with site(tmp_path / "s", network, host=engine_host(), policy=policy) as tasks:
        tasks.received(order("run-1", spec))
        end = await network.ended("run-1")
    assert end.state is RunState.DONE, end
    assert network.content(end, "stdout").decode().splitlines() == [
        "named: hello",
        "other: 403 The policy of this site (tasks.egress) does not lead to example.org:80.",
        "straight: no",
        "resolved: no",
    ]
    (record,) = (each for each in AuditLog(tmp_path / "s" / AUDIT_FILE).records() if each.kind == "task.egress")
    assert record.data["connections"] == {f"127.0.0.1:{port}": 1}
    assert record.data["refused"] == {"example.org:80": 1}
    assert record.data["bytes_in"] > len("hello")
    assert not networks(client_of(tmp_path / "s"))
    assert json.dumps(record.data).count("Basic") == 0


async def test_without_a_named_host_there_is_no_network(tmp_path: Path) -> None:
    network = TaskNetwork()
    policy = dataclasses.replace(ANYTHING, tasks=TaskPolicy(pull=Pull.NEVER))
    spec = plain(base_image(), "sh", "-c", "ls /sys/class/net; env | grep -ci proxy")
    async with site(tmp_path / "s", network, host=engine_host(), policy=policy) as tasks:
        tasks.received(order("run-1", spec))
        end = await network.ended("run-1")
    assert network.content(end, "stdout") == b"lo\n0\n"
