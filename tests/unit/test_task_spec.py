"""The one description of a task: what is in it survives every way, and what is hostile is refused with its place."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.common.errors import InvalidInput
from runnel.common.tasks import MAX_WITHIN, TaskSpec, task_spec

pytestmark = pytest.mark.unit

GOOD_IMAGES = [
    "a",
    "a/b:1",
    "registry.example.org/org/tool:v1.2",
    "localhost:5000/x",
    "10.0.0.1:80/a_b/c--d",
    f"a@sha256:{'0' * 64}",
]
HOSTILE_IMAGES = [
    "",
    " a",
    "a b",
    "a;touch /tmp/x",
    "a$(id)",
    "a`id`",
    "a|b",
    "a&b",
    "a\nb",
    "a\0b",
    "../a",
    "a/../b",
    "/a",
    "a//b",
    "-v",
    "--privileged",
    "a:",
    "a:tag with space",
    "a@sha256:123",
    f"a@sha256:{'G' * 64}",
    f"a@md5:{'0' * 64}",
    "A/B",
    "http://host/a",
    "a?x=1",
    "a#b",
    "a%2fb",
    "\uff41",
    "a" * 500,
]
HOSTILE_PATHS = ["", "relative", "../up", "/a/../../etc", "/..", "/a/..", "/a\0b", "/" + "a" * 2000]
HOSTILE_NAMES = ["", "1A", "A B", "A=B", "A\nB", "LD-PRELOAD", "É", "A" * 300]


def spec(**fields: object) -> str:
    return json.dumps({"executors": [{"image": "a"}], **fields})


@pytest.mark.parametrize("image", GOOD_IMAGES)
def test_names_that_engines_know_are_taken(image: str) -> None:
    assert task_spec(spec(executors=[{"image": image}]), source="a test").executors[0].image == image


@pytest.mark.parametrize("image", HOSTILE_IMAGES)
def test_hostile_names_of_images_are_refused(image: str) -> None:
    with pytest.raises(InvalidInput, match=r"executors\.0\.image"):
        task_spec(spec(executors=[{"image": image}]), source="a test")


@pytest.mark.parametrize("path", HOSTILE_PATHS)
@pytest.mark.parametrize("field", ["workdir", "stdin", "stdout", "stderr"])
def test_paths_of_executors_stay_inside(field: str, path: str) -> None:
    with pytest.raises(InvalidInput, match=rf"executors\.0\.{field}"):
        task_spec(spec(executors=[{"image": "a", field: path}]), source="a test")


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_paths_of_files_and_folders_stay_inside(path: str) -> None:
    for fields in ({"outputs": [path]}, {"volumes": [path]}, {"inputs": [{"path": path, "content": {"data": ""}}]}):
        with pytest.raises(InvalidInput, match=next(iter(fields))):
            task_spec(spec(**fields), source="a test")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_of_variables_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="env"):
        task_spec(spec(executors=[{"image": "a", "env": {name: "x"}}]), source="a test")


@pytest.mark.parametrize("label", ["", ".a", "a/b", "../x", "a b", "-a", "a" * 65, "é"])
def test_labels_are_safe_as_names_of_files(label: str) -> None:
    for fields in (
        {"group": label},
        {"profile": label},
        {"databases": [label]},
        {"selections": [{"query": "{ t { a } }", "database": label}]},
        {"selections": [{"query": "{ t { a } }", "name": label}]},
    ):
        with pytest.raises(InvalidInput):
            task_spec(spec(**fields), source="a test")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"executors": []}',
        spec(privileged=True),
        spec(resources={"cpus": 1e999}),
        "x" * (1 << 21),
    ],
)
def test_what_is_no_task_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput, match="a test"):
        task_spec(text, source="a test")


def test_a_content_is_data_or_a_blob_and_small_within() -> None:
    blob = {"sha256": "0" * 64, "size_bytes": 1}
    large = base64.b64encode(bytes(MAX_WITHIN + 1)).decode()
    for content in (
        {},
        {"data": "", "blob": blob},
        {"data": large},
        {"blob": {**blob, "size_bytes": -1}},
    ):
        with pytest.raises(InvalidInput, match="payload"):
            task_spec(spec(payload=content), source="a test")
    fits = base64.b64encode(bytes(MAX_WITHIN)).decode()
    payload = task_spec(spec(payload={"data": fits}), source="a test").payload
    assert payload is not None
    assert payload.data == bytes(MAX_WITHIN)


TEXT = st.text("aZ09 .-_/:\n\t\"'\\$`;|&<>{}\u00e9\u202e\u2603\U0001f600", max_size=12)
LABEL = st.tuples(st.sampled_from("aZ0"), st.text("bY1._-", max_size=8)).map("".join)
VARIABLE = st.tuples(st.sampled_from("aZ_"), st.text("bY1_", max_size=8)).map("".join)
PATH = st.lists(LABEL, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
CONTENT = st.one_of(
    st.binary(max_size=200).map(lambda data: {"data": base64.b64encode(data).decode()}),
    st.integers(0, 1 << 40).map(lambda size: {"blob": {"sha256": f"{size:064x}", "size_bytes": size}}),
)
EXECUTOR = st.fixed_dictionaries(
    {"image": st.sampled_from(GOOD_IMAGES)},
    optional={
        "command": st.lists(TEXT, max_size=5),
        "workdir": PATH,
        "env": st.dictionaries(VARIABLE, TEXT, max_size=3),
        "stdout": PATH,
        "ignore_error": st.booleans(),
    },
)
SPEC = st.fixed_dictionaries(
    {"executors": st.lists(EXECUTOR, min_size=1, max_size=3)},
    optional={
        "name": TEXT,
        "payload": CONTENT,
        "inputs": st.lists(st.fixed_dictionaries({"path": PATH, "content": CONTENT}), max_size=4),
        "selections": st.lists(st.fixed_dictionaries({"query": TEXT.filter(bool), "database": LABEL}), max_size=3),
        "volumes": st.lists(PATH, max_size=3),
        "group": LABEL,
        "resources": st.fixed_dictionaries({}, optional={"cpus": st.floats(0.1, 64), "time_s": st.floats(1, 1e6)}),
        "tags": st.dictionaries(TEXT, TEXT, max_size=4),
    },
)


@settings(max_examples=30)
@given(SPEC)
def test_a_description_is_the_same_after_every_way(fields: dict[str, object]) -> None:
    once = TaskSpec.model_validate(fields)
    again = task_spec(once.as_json(), source="a test")
    assert again == once
    assert again.as_json() == once.as_json()


def test_a_task_without_executors_selects_and_has_nothing_for_containers() -> None:
    selects = {"executors": [], "selections": [{"query": "{ t { a } }"}]}
    told = task_spec(json.dumps(selects | {"profile": None, "resources": {"output_bytes": 9}}), source="a test")
    assert told.selects
    assert task_spec(told.as_json(), source="a test") == told
    assert not task_spec(spec(), source="a test").selects
    for more in ({"databases": ["x"]}, {"central": True}, {"contract": "vantage6"}, {"outputs": ["/out"]}):
        with pytest.raises(InvalidInput, match=f"has no {next(iter(more))}: those are for containers"):
            task_spec(json.dumps(selects | more), source="a test")
