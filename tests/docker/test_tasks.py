"""Container tasks on a real engine: the plain contract, limits, cancellation, and a client that is killed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runnel.client.audit import AUDIT_FILE, AuditLog
from runnel.client.domain.policy import ANYTHING
from runnel.client.domain.task_policy import Pull, TaskLimits, TaskPolicy
from runnel.client.tasks.release import Decision, Decisions, record_decision, waiting_results
from runnel.common.protocol import RunState, TaskSettled
from runnel.common.tasks import Selection
from tests.docker_engine import base_image, containers, engine_host, volumes
from tests.doubles.task_network import CLIENT, TaskNetwork, client_of, order, plain, site
from tests.eventually import eventually

pytestmark = pytest.mark.docker

PYTHON = ("python3", "-c")


async def tables(selections: Sequence[Selection], folder: Path, *, minimum_rows: int) -> None:
    """Select as a site would."""
    for each in selections:
        await asyncio.to_thread((folder / f"{each.name}.csv").write_text, "a,b\n1,2\n")


def limited(**limits: object) -> object:
    rules = TaskPolicy(pull=Pull.NEVER, limits=TaskLimits(**limits))  # type: ignore[arg-type]
    return dataclasses.replace(ANYTHING, tasks=rules)


async def test_the_plain_contract_from_order_to_result(tmp_path: Path) -> None:
    network, host = TaskNetwork(), engine_host()
    script = """
import json, os, pathlib, sys
given, out = pathlib.Path(os.environ["CA_INPUT_FOLDER"]), pathlib.Path(os.environ["CA_OUTPUT_FOLDER"])
found = {str(path.relative_to(given)): path.read_text() for path in sorted(given.rglob("*")) if path.is_file()}
refused = []
for place in (given / "new", pathlib.Path("/usr/new"), given / "t.csv"):
    try: place.write_text("x")
    except OSError as error: refused.append(error.errno)
(out / "sub").mkdir()
(out / "sub" / "found.json").write_text(json.dumps(found))
(out / "link").symlink_to("/etc/passwd")
os.mkfifo(out / "pipe")
interfaces = sorted(os.listdir("/sys/class/net"))
facts = {"uid": os.getuid(), "refused": refused, "net": interfaces, "other": pathlib.Path("/opt/x.txt").read_text(),
         "env": {name: os.environ[name] for name in ("CA_CONFIG_FOLDER", "INPUT_PATH", "MINE")}}
(out / "facts.json").write_text(json.dumps(facts))
pathlib.Path("/mnt/logs/own.log").write_text("my log")
print("to stdout"); print("to stderr", file=sys.stderr)
"""
    spec = plain(
        base_image(),
        *PYTHON,
        script,
        executor={"env": {"MINE": "$(touch /x)"}},
        payload={"data": "eyJ4IjogMX0="},
        selections=[{"query": "{ t { a b } }", "name": "t"}],
        inputs=[
            {"path": "/mnt/input/deep/more.txt", "content": {"blob": network.blob(b"more")}},
            {"path": "/opt/x.txt", "content": {"blob": network.blob(b"elsewhere")}},
        ],
    )
    async with site(tmp_path / "s", network, host=host, selector=tables) as tasks:
        assert tasks.slots == 2
        tasks.received(order("run-1", spec))
        end = await network.ended("run-1")
        assert end.state is RunState.DONE, end
        assert network.states("run-1") == [
            RunState.ASSIGNED,
            RunState.PREPARING,
            RunState.RUNNING,
            RunState.PUSHING,
            RunState.DONE,
        ]
        files = network.unzipped(end)
        assert sorted(files) == ["facts.json", "sub/found.json"]
        assert json.loads(files["sub/found.json"]) == {
            "deep/more.txt": "more",
            "input.json": '{"x": 1}',
            "t.csv": "a,b\n1,2\n",
        }
        facts = json.loads(files["facts.json"])
        assert facts["uid"] != 0
        assert len(facts["refused"]) == 3
        assert facts["net"] == ["lo"]
        assert facts["other"] == "elsewhere"
        assert facts["env"] == {"CA_CONFIG_FOLDER": "/app", "INPUT_PATH": "/mnt/input", "MINE": "$(touch /x)"}
        assert network.content(end, "stdout") == b"to stdout\n"
        assert network.content(end, "stderr") == b"to stderr\n"
        assert network.content(end, "log") == b"my log"
        assert end.result is not None
        assert end.result.exit_code == 0
        assert end.result.attempt == 1
        assert end.result.image_digest.startswith("sha256:")
        assert {"to stdout", "to stderr"} <= {line.text for line in network.lines("run-1")}
        assert tasks.holding() == ("run-1",)
        tasks.received(TaskSettled(run_id="run-1", client=CLIENT))
        await eventually(lambda: tasks.holding() == ())
    assert not containers(client_of(tmp_path / "s"))
    assert not any((tmp_path / "s" / "runs").iterdir())


async def test_a_run_under_review_says_nothing_of_what_it_found_not_even_by_its_exit_status(tmp_path: Path) -> None:
    network, state = TaskNetwork(), tmp_path / "s"
    policy = dataclasses.replace(ANYTHING, tasks=TaskPolicy(pull=Pull.NEVER, review=True))
    async with site(state, network, host=engine_host(), policy=policy) as tasks:
        tasks.received(order("run-1", plain(base_image(), *PYTHON, "print('seen'); raise SystemExit(42)")))
        await eventually(lambda: RunState.AWAITING_RELEASE in network.states("run-1"), timeout_s=60)
        (waiting,) = waiting_results(state)
        assert waiting.held.result is not None
        assert waiting.held.result.exit_code == 42
        record_decision(
            AuditLog(state / AUDIT_FILE),
            Decisions(state / "runs"),
            "run-1",
            Decision(release=False, by="people", at=datetime.now(UTC), reason=""),
        )
        end = await network.ended("run-1")
    assert end.state is RunState.REJECTED
    assert not network.lines("run-1")
    assert {news.result.exit_code for news in network.news if news.result is not None} == {None}


async def test_executors_share_volumes_and_the_first_that_fails_ends_the_run(tmp_path: Path) -> None:
    network, image = TaskNetwork(), base_image()
    steps = [
        {"image": image, "command": ["sh", "-c", "cat; pwd; echo a > /shared/a"], "stdin": "/mnt/input/in.txt"}
        | {"stdout": "/mnt/output/said/first.txt", "workdir": "/usr"},
        {"image": image, "command": ["sh", "-c", "cat /shared/a /mnt/output/said/first.txt; exit 3"]},
        {"image": image, "command": ["touch", "/mnt/output/never"]},
    ]
    spec = plain(
        image,
        executors=steps,
        volumes=["/shared"],
        outputs=["/shared/a", "/results/b.txt", "/mnt/output"],
        inputs=[{"path": "/mnt/input/in.txt", "content": {"data": "aW4K"}}],
    )
    async with site(tmp_path / "s", network, host=engine_host()) as tasks:
        tasks.received(order("run-1", spec))
        end = await network.ended("run-1")
    assert end.state is RunState.FAILED
    assert end.result is not None
    assert end.result.failure is not None
    assert end.result.failure.code == "exit_status"
    assert "2 of 3" in end.result.failure.message
    assert end.result.exit_code == 3
    assert network.unzipped(end) == {"said/first.txt": b"in\n/usr\n"}
    assert network.unzipped(end, "outputs") == {"shared/a": b"a\n", "results/b.txt": b""}
    assert network.content(end, "stdout") == b"in\n/usr\na\nin\n/usr\n"


@pytest.mark.parametrize(
    ("code", "limits", "script"),
    [
        ("memory_limit", {"memory_bytes": 64 << 20}, "x = bytearray(1 << 30)"),
        ("time_limit", {"time_s": 5.0}, "import time; print('on', flush=True); time.sleep(100)"),
        ("disk_limit", {"disk_bytes": 2 << 20}, "f = open('/mnt/output/x', 'wb')\nwhile 1: f.write(bytes(65536))"),
        ("output_limit", {"output_bytes": 1000}, "open('/mnt/output/x', 'wb').write(bytes(100000))"),
        ("files_limit", {"output_files": 5}, "for n in range(9): open(f'/mnt/output/{n}', 'w')"),
        ("pids_limit", {"pids": 8}, "from threading import *\nfor n in range(50): Timer(3, print).start()"),
    ],
)  # fmt: skip
async def test_a_limit_that_was_hit_is_told(tmp_path: Path, code: str, limits: dict[str, object], script: str) -> None:
    network = TaskNetwork()
    async with site(tmp_path / "s", network, host=engine_host(), policy=limited(**limits)) as tasks:  # type: ignore[arg-type]
        tasks.received(order("run-1", plain(base_image(), *PYTHON, f"print('begun', flush=True)\n{script}")))
        end = await network.ended("run-1")
    assert end.state is RunState.FAILED
    assert end.result is not None
    assert end.result.failure is not None
    assert end.result.failure.code == code, end.result.failure
    assert b"begun" in network.content(end, "stdout")


async def test_cancelled_runs_end_and_others_go_on(tmp_path: Path) -> None:
    network = TaskNetwork()
    sleeping = plain(base_image(), *PYTHON, "import time; print('on', flush=True); time.sleep(1000)")
    async with site(tmp_path / "s", network, host=engine_host(), parallel=2, client="canceller") as tasks:
        for number in range(3):
            tasks.received(order(f"run-{number}", sleeping))
        await eventually(
            lambda: all(network.states(f"run-{number}")[-1:] == [RunState.RUNNING] for number in range(2)),
            state=lambda: network.news,
        )
        assert network.states("run-2") == [RunState.ASSIGNED]
        await eventually(lambda: len(containers("canceller")) == 2)
        tasks.received(TaskSettled(run_id="run-0", client=CLIENT, cancelled=True))
        await eventually(lambda: network.states("run-2")[-1:] == [RunState.RUNNING])
        for number in (1, 2):
            tasks.received(TaskSettled(run_id=f"run-{number}", client=CLIENT, cancelled=True))
        await eventually(lambda: tasks.holding() == ())
        assert not await asyncio.to_thread(containers, "canceller")
        assert network.pushes == 0


async def test_a_client_whose_files_the_engine_has_not_copies_them(tmp_path: Path) -> None:
    network, image = TaskNetwork(), base_image()
    steps = [
        {"image": image, "command": ["sh", "-c", "cat /mnt/input/a /mnt/input/b/c > /mnt/output/x; echo 1 > /v/n"]},
        {"image": image, "command": ["sh", "-c", "cat /v/n /mnt/output/x >> /mnt/output/y; touch /mnt/input/z"]},
    ]
    inputs = [{"path": f"/mnt/input/{name}", "content": {"data": "aW4K"}} for name in ("a", "b/c")]
    spec = plain(image, executors=steps, inputs=inputs, volumes=["/v"])
    alone = plain(image, "true", inputs=[{"path": "/one.txt", "content": {"data": ""}}])
    async with site(tmp_path / "s", network, host=engine_host(), files="copy", client="copier") as tasks:
        tasks.received(order("run-1", spec))
        tasks.received(order("run-2", alone))
        end = await network.ended("run-1")
        refused = await network.ended("run-2")
    assert end.result is not None
    assert end.result.failure is not None
    assert end.result.failure.code == "exit_status"
    assert network.unzipped(end) == {"x": b"in\nin\n", "y": b"1\nin\nin\n"}
    assert refused.result is not None
    assert refused.result.failure is not None
    assert "--docker-files mount" in refused.result.failure.message
    assert not await asyncio.to_thread(containers, "copier")
    assert not await asyncio.to_thread(volumes, "copier")


@pytest.mark.parametrize("pull", list(Pull))
async def test_an_image_that_can_not_be_had_fails_the_run_with_the_reason(tmp_path: Path, pull: Pull) -> None:
    network = TaskNetwork()
    policy = dataclasses.replace(ANYTHING, tasks=TaskPolicy(pull=pull))
    # That it is here does not help where it has to be fetched before each run.
    image = base_image() if pull is Pull.ALWAYS else "127.0.0.1:1/none:1"
    async with site(tmp_path / "s", network, host=engine_host(), policy=policy) as tasks:
        tasks.received(order("run-1", plain(image, "true")))
        end = await network.ended("run-1")
    assert end.result is not None
    assert end.result.failure is not None
    assert end.result.failure.code == "image"
    word = "fetches none" if pull is Pull.NEVER else "could not be fetched: "
    assert word in end.result.failure.message
    assert end.result.exit_code is None


async def test_links_that_a_container_leaves_lead_nowhere_outside_of_it(tmp_path: Path) -> None:
    network, image, outside = TaskNetwork(), base_image(), tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    leave = f"ln -s {outside} /mnt/output/way; ln -s {outside}/secret /v/one; ln -s {outside} /v/all; mkfifo /v/pipe"
    steps = [
        {"image": image, "command": ["sh", "-c", f"{leave}; ln -s {outside} /mnt/logs/l; ln -s {outside} /g/l"]},
        {"image": image, "command": ["echo", "; touch $(id) `id` | & > x"], "stdout": "/mnt/output/way/new"},
    ]
    outputs = ["/v/one", "/v/all", "/v/all/secret", "/v/pipe", "/v/none"]
    spec = plain(image, executors=steps, volumes=["/v", "/g"], outputs=outputs)
    first = {**steps[0], "command": ["sh", "-c", f"echo first; {leave}"]}
    reads = plain(image, executors=[first, {"image": image, "command": ["cat"], "stdin": "/v/all/secret"}])
    reads = reads.model_copy(update={"volumes": ("/v", "/g")})
    async with site(tmp_path / "s", network, host=engine_host(), client="linker") as tasks:
        tasks.received(order("run-1", spec))
        tasks.received(order("run-2", reads))
        end, refused = await network.ended("run-1"), await network.ended("run-2")
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert end.result is not None
    assert end.result.failure is not None
    assert "/mnt/output/way/new" in end.result.failure.message
    assert network.unzipped(end) == network.unzipped(end, "outputs") == {}
    assert network.content(end, "stdout") == b"; touch $(id) `id` | & > x\n"
    assert refused.result is not None
    assert refused.result.failure is not None
    assert refused.result.failure.code == "invalid_input"
    assert network.content(refused, "stdout") == b"first\n"
    assert not any(b"secret" in data for data in network.files.values())
