"""The three forms in which clients of Federated Data Sharing ask for a task, and what is made of them."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from runnel.common.errors import InvalidInput
from runnel.common.tasks import Language, TaskSpec
from runnel.reducer.http.fds.bodies import read_task
from runnel.reducer.http.fds.documents import Form
from runnel.reducer.http.fds.quantities import amount_of

pytestmark = pytest.mark.unit

QUERY = "{ patients { age sex } }"

TES: dict[str, Any] = {
    "name": "Summary",
    "description": "Profile the patients",
    "tags": {"sites": "north"},
    "inputs": [{"content": QUERY}],
    "outputs": [{"path": "/mnt/output/"}],
    "executors": [{"image": "registry.example.org/profiler:latest"}],
}
LEGACY: dict[str, Any] = {
    "task": {
        "name": "Summary",
        "description": "Profile the patients",
        "queryInput": {"selectionQuery": QUERY},
        "container": {"name": "profiler", "tag": "latest", "registry": "registry.example.org"},
        "tags": {"sites": "north"},
    }
}
NODE: dict[str, Any] = {
    "name": "Summary",
    "description": "Profile the patients",
    "requested_by": "somebody",
    "executors": [{"image": "registry.example.org/profiler:latest", "command": ["R"], "env": {"DEPTH": 123}}],
    "db_query": {"query": "SELECT age, sex FROM patients", "dialect": "postgres"},
    "tags": {"dataset_id": "north/clinic", "study": "first"},
    "inputs": {},
    "outputs": {},
    "resources": {"limits": {"cpu": "500m", "memory": "128Mi"}, "requests": {"cpu": "0.1", "memory": "64Mi"}},
    "volumes": {},
}


def with_sql(document: dict[str, Any]) -> dict[str, Any]:
    """The form of the specification with what only a federated node says by itself."""
    return {
        **document,
        "inputs": [{"content": "SELECT age FROM patients", "name": "patients.csv"}],
        "executors": [{**TES["executors"][0], "command": ["R"]}],
    }


def test_two_forms_make_the_same_task() -> None:
    tes, legacy = read_task(TES), read_task(LEGACY)
    assert (tes.form, legacy.form) == (Form.TES, Form.LEGACY)
    assert tes.sites == legacy.sites == ("north",)
    assert tes.spec.model_copy(update={"tags": {}}) == legacy.spec.model_copy(update={"tags": {}})
    assert tes.spec.selections[0].query == QUERY
    assert tes.spec.selections[0].language is Language.GRAPHQL
    assert tes.spec.outputs == ()


def test_the_third_form_makes_the_same_task() -> None:
    node = {
        **NODE,
        "db_query": {"query": "SELECT age FROM patients"},
        "executors": [{**NODE["executors"][0], "env": None}],
        "inputs": {"patients.csv": "/mnt/input"},
        "outputs": {"results": "/mnt/output"},
        "resources": {},
    }
    made, tes = read_task(node), read_task(with_sql(TES) | {"tags": NODE["tags"]})
    assert made.form is Form.FEDERATED_NODE
    assert made.sites == tes.sites == ("north",)
    assert made.spec.model_copy(update={"tags": {}}) == tes.spec.model_copy(update={"tags": {}})
    assert tes.spec.selections[0].language is Language.SQL
    assert tes.spec.selections[0].name == "patients"
    assert tes.spec.selections[0].database == "clinic"


def test_a_federated_node_has_folders_of_its_own() -> None:
    wanted = read_task(NODE)
    spec = wanted.spec
    assert spec.profile == "plural"
    assert spec.outputs == ()
    assert spec.selections[0].name == "inputs"
    assert spec.executors[0].env == {"DEPTH": "123"}
    assert (spec.resources.cpus, spec.resources.memory_bytes) == (0.5, 128 << 20)
    assert spec.tags["study"] == "first"
    assert wanted.unknown == ()


@pytest.mark.parametrize(
    "resources",
    [
        {"cpu_cores": 2, "ram_gb": 1.5, "disk_gb": 10, "preemptible": False, "zones": ["a"]},
        {"cpuCores": 2, "ramGb": 1.5, "diskGb": 10.0},
    ],
)
def test_resources_in_both_spellings(resources: dict[str, Any]) -> None:
    made = read_task({**TES, "resources": resources}).spec.resources
    assert (made.cpus, made.memory_bytes, made.disk_bytes) == (2, 1_500_000_000, 10_000_000_000)


def test_no_resources_are_asked_for_by_zero() -> None:
    assert read_task({**TES, "resources": {"cpu_cores": 0, "ram_gb": 0}}).spec.resources.memory_bytes is None


def test_a_content_with_a_path_is_a_file() -> None:
    large = "ä" * 70_000
    inputs = [
        {"path": "/data/settings.json", "content": "{}", "type": "FILE"},
        {"path": "/data/large.txt", "content": large},
    ]
    wanted = read_task(
        {**TES, "inputs": inputs, "volumes": ["/shared"], "outputs": [{"path": "/out", "url": "s3://x"}]}
    )
    first, second = wanted.spec.inputs
    assert (first.path, first.content.data) == ("/data/settings.json", b"{}")
    assert wanted.spec.selections == ()
    assert wanted.blobs == (large.encode(),)
    assert second.content.blob is not None
    assert second.content.blob.sha256 == hashlib.sha256(large.encode()).hexdigest()
    assert wanted.spec.volumes == ("/shared",)
    assert wanted.spec.outputs == ("/out",)


def test_all_of_an_executor_arrives() -> None:
    executor = {
        "image": "alpine",
        "command": ["sort"],
        "workdir": "/work",
        "stdin": "/mnt/input/a",
        "stdout": "/mnt/output/a",
        "stderr": "/mnt/logs/a",
        "env": {"A": "b"},
        "ignore_error": True,
    }
    first, second = read_task({**TES, "executors": [executor, {"image": "alpine"}]}).spec.executors
    assert first.model_dump(exclude_defaults=True) == executor | {"command": ("sort",)}
    assert second.command is None


@pytest.mark.parametrize(
    ("tags", "sites", "database"),
    [
        ({}, (), "default"),
        ({"sites": " north, south,north,"}, ("north", "south"), "default"),
        ({"dataset_name": "north"}, ("north",), "default"),
        ({"dataset_id": "north/clinic"}, ("north",), "clinic"),
        ({"sites": "north,south", "dataset_name": "clinic"}, ("north", "south"), "clinic"),
    ],
)
def test_tags_say_where(tags: dict[str, str], sites: tuple[str, ...], database: str) -> None:
    wanted = read_task({**TES, "tags": tags})
    assert wanted.sites == sites
    assert wanted.spec.selections[0].database == database


def test_the_misspelt_folder_is_a_profile() -> None:
    spec = read_task({**TES, "outputs": [{"path": "/mnt/ouput"}]}).spec
    assert (spec.profile, spec.outputs) == ("misspelt", ())


@pytest.mark.parametrize(
    ("document", "unknown"),
    [
        ({**TES, "colour": 1}, ("colour",)),
        ({**TES, "executors": [{"image": "a", "comand": ["x"]}]}, ("executors.0.comand",)),
        ({**TES, "id": "x", "state": "RUNNING", "logs": [], "creation_time": "now"}, ()),
        ({"task": {**LEGACY["task"], "priority": 3}, "x": 1}, ("x", "task.priority")),
        ({**NODE, "resources": {"limits": {"gpu": "1"}}}, ("resources.limits.gpu",)),
    ],
)
def test_unknown_fields_are_named(document: dict[str, Any], unknown: tuple[str, ...]) -> None:
    assert read_task(document).unknown == unknown


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "executors"),
        ({**TES, "executors": []}, "executors"),
        ({**TES, "executors": [{"command": ["a"]}]}, "executors.0.image"),
        ({**TES, "executors": [{"image": "a b; rm -rf /"}]}, "executors.0.image"),
        ({**TES, "executors": [{"image": "a", "command": "ls"}]}, "executors.0.command"),
        ({**TES, "executors": [{"image": "a", "stdout": "../x"}]}, "executors.0.stdout"),
        ({**TES, "executors": [{"image": "a", "env": {"A B": "x"}}]}, "executors.0.env"),
        ({**TES, "inputs": [{"url": "s3://bucket/x", "path": "/x"}]}, "fetches nothing from s3://bucket/x"),
        ({**TES, "inputs": [{"url": "s3://bucket/x"}]}, "inputs.0"),
        ({**TES, "inputs": [{"path": "/x", "content": "a", "type": "DIRECTORY"}]}, "DIRECTORY"),
        ({**TES, "inputs": [{"path": "x", "content": "a"}]}, "inputs.0.path"),
        ({**TES, "outputs": [{"path": "/out/*.csv", "url": "s3://x"}]}, "wildcards"),
        ({**TES, "outputs": [{"path": "/a/../../etc"}]}, "outputs.0"),
        ({**TES, "resources": {"ram_gb": -1}}, "resources.ram_gb"),
        ({**TES, "resources": {"backend_parameters": {"q": "1"}, "backend_parameters_strict": True}}, "q"),
        ({**TES, "tags": {"a": ["b"]}}, "tags.a"),
        ({"task": {"name": "x"}}, "task.container"),
        ({"task": {"container": {"name": "x", "registry": "<REGISTRY>"}}}, "executors.0.image"),
        ({**NODE, "executors": NODE["executors"] * 2}, "executors"),
        ({**NODE, "resources": {"limits": {"cpu": "many"}}}, "many"),
        ({**NODE, "inputs": {"../x": "/mnt/inputs"}}, "selections.0.name"),
    ],
)
def test_what_is_wrong_is_named(document: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says.replace(".", r"\.")):
        read_task(document)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("128974848", 128974848),
        ("129e6", 129e6),
        ("129M", 129e6),
        ("128974848000m", 128974848),
        ("123Mi", 123 << 20),
        ("0.1", 0.1),
        ("2k", 2000),
        ("1Ki", 1024),
        ("", None),
        (None, None),
    ],
)
def test_quantities(text: str | None, amount: float | None) -> None:
    assert amount_of(text, "it") == amount


@pytest.mark.parametrize("text", ["-1", "1e", "1 Gi", "1Q", "0x10", "१", "1" * 40, "nan", "1mi"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"it: .*quantity"):
        amount_of(text, "it")


def test_how_a_task_was_asked_for_is_not_for_who_asks_to_say() -> None:
    assert "fds.form" not in read_task({**TES, "tags": {"fds.form": "legacy"}}).spec.tags
    assert read_task(LEGACY).spec.tags["fds.form"] == "legacy"


def test_the_task_survives_its_way() -> None:
    spec = read_task(NODE).spec
    assert TaskSpec.model_validate_json(spec.as_json()) == spec
