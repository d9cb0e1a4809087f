"""What a site lets run of tasks: each rule by itself, and the table of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runnel.client.app import site_policy
from runnel.client.domain.policy import ANYTHING, SIGNED
from runnel.client.domain.task_policy import PRESENT_IMAGES, Pull, TaskFacts, TaskPolicy, judge_task, registry_of
from runnel.client.policy_file import default_policy, policy_document, read_policy
from runnel.client.settings import ClientSettings
from runnel.client.tasks.task_cage import task_cage, task_time
from runnel.common.errors import BadSettings
from runnel.common.tasks import Resources

pytestmark = pytest.mark.unit

DIGEST = f"sha256:{'1' * 64}"


def facts(**choices: Any) -> TaskFacts:
    usual: dict[str, Any] = {"organisation": "org", "user": "ada", "images": ("myConsortium/tool:1",)}
    return TaskFacts(**usual | choices)


@pytest.mark.parametrize(
    ("policy", "seen", "rule"),
    [
        (TaskPolicy(), facts(), None),
        (None, facts(), "tasks"),
        (TaskPolicy(images=("myConsortium/.*:.*",)), facts(), None),
        (TaskPolicy(images=("myConsortium/.*:.*",)), facts(images=("evil/myConsortium/a:1",)), "images"),
        (TaskPolicy(images=("myConsortium/.*:.*",)), facts(images=("myConsortium/a",)), "images"),
        (TaskPolicy(images=("myConsortium/.*",)), facts(images=("myConsortium/a:1", "other:1")), "images"),
        (TaskPolicy(images=()), facts(), "images"),
        (TaskPolicy(registries=frozenset({"registry.example.org"})), facts(), "registries"),
        (TaskPolicy(registries=frozenset({"registry.example.org"})), facts(images=("registry.example.org/a",)), None),
        (
            TaskPolicy(registries=frozenset({"registry.example.org"})),
            facts(images=("registry.example.org.evil.org/a",)),
            "registries",
        ),
        (TaskPolicy(digests=frozenset({DIGEST})), facts(), None),
        (TaskPolicy(digests=frozenset({DIGEST})), facts(digests=(frozenset({DIGEST, "sha256:2"}),)), None),
        (TaskPolicy(digests=frozenset({DIGEST})), facts(digests=(frozenset({"sha256:2"}),)), "digests"),
        (TaskPolicy(digests=frozenset()), facts(digests=(frozenset({DIGEST}),)), "digests"),
        (TaskPolicy(users=frozenset({"ada"})), facts(), None),
        (TaskPolicy(users=frozenset({"ada"})), facts(user="bob"), "users"),
        (TaskPolicy(organisations=frozenset({"org"})), facts(organisation="other"), "organisations"),
        (TaskPolicy(databases=frozenset({"default"})), facts(databases=frozenset({"default"})), None),
        (TaskPolicy(databases=frozenset({"default"})), facts(databases=frozenset({"default", "x"})), "databases"),
        (TaskPolicy(), facts(network="bridge"), "networks"),
        (TaskPolicy(networks=frozenset({"bridge"})), facts(network="bridge"), None),
        (TaskPolicy(networks=frozenset({"bridge"})), facts(), "networks"),
        (TaskPolicy(), facts(central=True), "central"),
        (TaskPolicy(central=True), facts(central=True), None),
        (PRESENT_IMAGES, facts(central=True), None),
        (PRESENT_IMAGES, facts(images=(), selects=True), "select"),
        (TaskPolicy(), facts(images=(), selects=True), "select"),
        (TaskPolicy(images=(), select=True), facts(images=(), selects=True, network="bridge"), None),
        (TaskPolicy(images=(), select=True), facts(), "images"),
    ],
)
def test_each_rule_speaks_for_itself(policy: TaskPolicy | None, seen: TaskFacts, rule: str | None) -> None:
    broken = judge_task(policy, seen)
    assert (broken and broken.rule) == rule


def test_an_image_without_a_host_is_from_the_usual_registry() -> None:
    assert registry_of("a") == registry_of("a/b:1") == "docker.io"
    assert registry_of("a.b/c") == "a.b"


def test_a_client_on_the_loopback_runs_present_images_and_any_other_none() -> None:
    assert default_policy(loopback=True).policy.tasks == PRESENT_IMAGES == ANYTHING.tasks
    assert default_policy(loopback=False).policy.tasks is None
    assert SIGNED.tasks is None


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    return path


def test_the_table_of_the_file(tmp_path: Path) -> None:
    site = read_policy(
        written(
            tmp_path,
            f"""
            [tasks]
            images = ["org/.*:.*"]
            digests = ["{DIGEST}"]
            users = ["ada"]
            databases = []
            pull = "always"
            central = true
            select = true
            review = true
            remote_review = ["custodian"]
            minimum_rows = 5
            limits = {{ memory_bytes = "1GiB", time_s = 60, output_files = 3 }}
            """,
        )
    )
    tasks = site.policy.tasks
    assert tasks is not None
    assert tasks.images == ("org/.*:.*",)
    assert tasks.digests == frozenset({DIGEST})
    assert tasks.databases == frozenset()
    assert tasks.organisations is None
    assert tasks.pull is Pull.ALWAYS
    assert tasks.review
    assert tasks.central
    assert tasks.select
    assert tasks.remote_review == frozenset({"custodian"})
    assert (tasks.minimum_rows, tasks.limits.memory_bytes, tasks.limits.output_files) == (5, 1 << 30, 3)
    document = policy_document(site.policy)["tasks"]
    assert document["pull"] == "always"
    assert document["limits"]["time_s"] == 60
    assert document["databases"] == []


def test_a_file_without_the_table_lets_no_task_run(tmp_path: Path) -> None:
    policy = read_policy(written(tmp_path, 'approve = "anything"')).policy
    assert policy.tasks is None
    assert policy_document(policy)["tasks"] is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[tasks]", "images, digests or registries"),
        ('[tasks]\nimages = ["("]', "no regular expression"),
        ('[tasks]\nimage = ["a"]', "Did you mean images"),
        ('[tasks]\ndigests = ["abc"]', "sha256:"),
        ('[tasks]\nimages = ["a"]\npull = "sometimes"', "missing, always, never"),
        ('[tasks]\nimages = ["a"]\nminimum_rows = -1', "minimum_rows"),
        ('[tasks]\nimages = ["a"]\nlimits = { memory = 1 }', "Did you mean memory_bytes"),
    ],
)
def test_a_wrong_table_is_refused_with_its_key(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        read_policy(written(tmp_path, text))


def test_a_task_gets_what_it_asks_for_and_never_more_than_the_site_gives(tmp_path: Path) -> None:
    policy = read_policy(
        written(
            tmp_path,
            """
            limits = { memory_bytes = "2GiB", time_s = 100 }
            [tasks]
            images = [".*"]
            networks = ["lab", "attic"]
            limits = { memory_bytes = "1GiB", cpus = 1.5 }
            """,
        )
    ).policy
    usual = task_cage(policy, Resources())
    assert (usual.memory_bytes, usual.cpus, usual.network) == (1 << 30, 1.5, "attic")
    more = task_cage(policy, Resources(memory_bytes=1 << 40, cpus=64, disk_bytes=1 << 50))
    assert more == usual
    less = task_cage(policy, Resources(memory_bytes=64 << 20, cpus=0.5, disk_bytes=2 << 20))
    assert (less.memory_bytes, less.cpus, less.disk_bytes) == (64 << 20, 0.5, 2 << 20)
    assert task_cage(policy, Resources(memory_bytes=4 << 20)).memory_bytes == 16 << 20
    assert task_time(policy, Resources(time_s=500), None) == 100
    assert task_time(policy, Resources(time_s=50), 10) == 10
    assert task_time(ANYTHING, Resources(), None) is None


def test_a_policy_that_gives_tasks_what_no_container_can_have_is_refused_when_it_is_read(tmp_path: Path) -> None:
    for text in ('networks = ["host"]', "limits = { memory_bytes = 1000 }"):
        path = written(tmp_path, f'[tasks]\nimages = [".*"]\n{text}')
        with pytest.raises(BadSettings, match="of a cage"):
            site_policy(ClientSettings(network="127.0.0.1:1", policy=path))
