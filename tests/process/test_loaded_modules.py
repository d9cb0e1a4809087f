"""What components have loaded once they serve: libraries that take long to import wait until they are needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.eventually import eventually_blocking
from tests.process.process_network import ProcessNetwork

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

# Runs the command, and tells of its process when it is asked to by a file.
PROBE = """
import gc, json, sys, threading, time
from pathlib import Path

def tell(asked, told):
    while not asked.exists():
        time.sleep(0.02)
    found = {"modules": sorted(sys.modules), "collects": gc.isenabled(), "lasting": gc.get_freeze_count()}
    draft = told.with_suffix(".draft")
    draft.write_text(json.dumps(found))
    draft.rename(told)

threading.Thread(target=tell, args=(Path(sys.argv[1]), Path(sys.argv[2])), daemon=True).start()
from runnel.cli.main import main
sys.exit(main(sys.argv[3:]))
"""

ENGINES = {"aiodocker", "aiohttp", "docker"}
DATA = {"duckdb", "graphql", "httpx", "obstore", "psycopg", "pymysql", "rdflib", "sqlglot"}
NOWHERE = {*ENGINES, *DATA, "alembic", "mako", "runnel.demo", "runnel.sdk"}
NOT_BELOW = {"fastapi", "prometheus_client", "sqlalchemy", "starlette", "uvicorn"}
NOT_IN = {
    "reducer": NOWHERE,
    "combiner": NOWHERE | NOT_BELOW,
    "client": NOWHERE | NOT_BELOW | {"cryptography", "jwt", "urllib.request"},
}


class ProbedNetwork(ProcessNetwork):
    by_exec = True

    def command(self, name: str) -> list[str]:
        return [sys.executable, "-c", PROBE, str(self.folder / f"{name}.asked"), str(self.folder / f"{name}.told")]

    def ask(self, name: str) -> dict[str, Any]:
        told = self.folder / f"{name}.told"
        (self.folder / f"{name}.asked").touch()
        eventually_blocking(told.exists, timeout_s=30.0)
        found: dict[str, Any] = json.loads(told.read_text())
        return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """What the processes of a network say when all are attached and people have asked."""
    folder = tmp_path_factory.mktemp("network")
    with ProbedNetwork(folder) as network:
        network.start_reducer()
        with network.together():
            network.start_combiner("combiner")
            network.start_client("client", folder)
        network.until_attached("combiner", "client")
        yield {name: network.ask(name) for name in NOT_IN}


@pytest.mark.parametrize("name", NOT_IN)
def test_what_takes_long_to_import_waits_until_it_is_needed(told: dict[str, dict[str, Any]], name: str) -> None:
    assert sorted(NOT_IN[name].intersection(told[name]["modules"])) == []


@pytest.mark.parametrize("name", NOT_IN)
def test_the_collector_runs_and_leaves_out_what_was_imported(told: dict[str, dict[str, Any]], name: str) -> None:
    assert told[name]["collects"]
    assert told[name]["lasting"] > 50_000


def test_the_probe_sees_what_is_loaded(told: dict[str, dict[str, Any]]) -> None:
    assert {"fastapi", "sqlalchemy"} <= set(told["reducer"]["modules"])
    assert {"grpc", "numpy"} <= set(told["combiner"]["modules"]) & set(told["client"]["modules"])
