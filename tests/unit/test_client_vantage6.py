"""Files and variables for vantage6's wrapper, exactly as a node of each release gives them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.client.tasks.contract import INPUT, PAYLOAD, Database, Layout, TaskSite
from runnel.client.tasks.vantage6 import Vantage6Contract
from runnel.client.tasks.vantage6_files import encoded, read_input, require_readable
from runnel.common.errors import BadOutput, InvalidInput
from runnel.common.protocol import TaskOrder
from runnel.common.tasks import Contract, Executor, Selection, TaskSpec
from runnel.common.tasks.site_numbers import numbered_sites, site_number

pytestmark = pytest.mark.unit

CALL = {"method": "partial_average", "args": [], "kwargs": {"column_name": "Age"}}
IMAGE = "registry.example/average:1"


def decoded(env: Mapping[str, str]) -> dict[str, str]:
    return {name: base64.b32decode(value.replace("!", "=")).decode() for name, value in env.items()}


class Bench:
    """One run: its folder and what a site shows to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        (self.folder / INPUT).mkdir(parents=True)
        self.data = folder / "data"
        self.data.mkdir()
        self.contract = Vantage6Contract()
        self.databases: dict[str, Database] = {}

    def table(self, label: str, name: str, **options: Any) -> None:
        path = self.data / name
        path.write_text("Age\n40\n")
        self.databases[label] = Database(label=label, kind="csv", where=path, options=options)

    def lay_out(self, payload: bytes | None = None, site: Mapping[str, Any] | None = None, **spec: Any) -> Layout:
        (self.folder / PAYLOAD).write_bytes(json.dumps(CALL).encode() if payload is None else payload)
        given = {
            "executors": (Executor(image=IMAGE),),
            "contract": Contract.VANTAGE6,
            "databases": tuple(self.databases),
        }
        self.spec = TaskSpec(**(given | spec))
        order = TaskOrder(run_id="run-1", client="a", task_id="tsk-1", organisation="o", user="u", spec="")
        self.site = TaskSite(name="a", databases=self.databases, **(site or {}))
        return self.contract.lay_out(order, self.spec, self.folder, self.site)

    def file(self, name: str) -> bytes:
        return (self.folder / "vantage6" / name).read_bytes()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.table("default", "default.csv")
    return made


def test_a_run_finds_what_a_node_of_release_4_gives(bench: Bench) -> None:
    layout = bench.lay_out()
    task = "/mnt/data/task-000000001"
    assert decoded(layout.env) == {
        "INPUT_FILE": f"{task}/input",
        "OUTPUT_FILE": f"{task}/output",
        "TOKEN_FILE": f"{task}/token",
        "TEMPORARY_FOLDER": "/mnt/tmp",
        "HOST": "http://localhost",
        "PORT": "8080",
        "API_PATH": "",
        "USER_REQUESTED_DATABASE_LABELS": "default",
        "DB_LABELS": "default",
        "DEFAULT_DATABASE_URI": "/mnt/data/default.csv",
        "DEFAULT_DATABASE_TYPE": "csv",
    }
    assert layout.env["USER_REQUESTED_DATABASE_LABELS"] == "MRSWMYLVNR2A!!!!"
    assert json.loads(bench.file("input")) == CALL
    assert bench.file("output") == b""
    assert layout.tmpfs == ("/mnt/tmp",)
    assert [(each.source, each.target, each.read_only) for each in layout.mounts] == [
        (bench.folder / "vantage6", task, False),
        (bench.data / "default.csv", "/mnt/data/default.csv", True),
    ]


def test_its_token_says_what_algorithms_read_in_it(bench: Bench) -> None:
    bench.lay_out()
    claims = jwt.decode(bench.file("token").decode(), options={"verify_signature": False})
    number = site_number("a")
    assert claims["sub"] == {
        "client_type": "container",
        "node_id": number,
        "organization_id": number,
        "collaboration_id": 1,
        "study_id": None,
        "store_id": None,
        "task_id": 1,
        "image": IMAGE,
        "databases": [{"label": "default"}],
    }
    first = bench.file("token")
    bench.lay_out()
    assert bench.file("token") != first


def test_releases_2_and_3_find_plain_variables_and_a_prefix(bench: Bench) -> None:
    bench.table("other", "other.csv")
    layout = bench.lay_out(profile="v3")
    assert bench.file("input").startswith(b"json.{")
    assert json.loads(bench.file("input").removeprefix(b"json.")) == CALL
    assert layout.env["DB_LABELS"] == '["default", "other"]'
    assert layout.env["USER_REQUESTED_DATABASE_LABEL"] == "default"
    assert layout.env["DATABASE_URI"] == layout.env["DEFAULT_DATABASE_URI"] == "/mnt/data/default.csv"
    bench.lay_out(profile="v2")
    claims = jwt.decode(bench.file("token").decode(), options={"verify_signature": False})
    assert claims["identity"]["databases"] == "default"
    # An image of release 2 is taken for one of release 3, if nobody says otherwise.
    assert claims["sub"] == claims["identity"]
    bench.lay_out(profile="v3", central=True)
    assert json.loads(bench.file("input").removeprefix(b"json.")) == {"master": True, **CALL}
    bench.databases.clear()
    with pytest.raises(InvalidInput, match="read a database"):
        bench.lay_out(profile="v3")


def test_releases_before_4_2_find_plain_variables(bench: Bench) -> None:
    assert bench.lay_out(profile="v4.0").env["INPUT_FILE"] == "/mnt/data/task-000000001/input"


def test_release_5_finds_its_function_in_a_variable_and_data_frames_in_its_session(bench: Bench) -> None:
    bench.databases = {"mydf": Database(label="mydf", kind="parquet", where=bench.data / "frame.parquet")}
    layout = bench.lay_out(json.dumps({"method": "sum", "kwargs": {"column": "Age"}}).encode(), profile="v5")
    env = decoded(layout.env)
    assert env["FUNCTION_ACTION"] == "federated_compute"
    assert env["ALGORITHM_METHOD"] == "sum"
    assert env["INPUT_FILE"] == "/app/vantage6/task/input"
    assert env["SESSION_FOLDER"] == "/app/vantage6/task/session"
    assert env["USER_REQUESTED_DATAFRAMES"] == "mydf"
    assert json.loads(bench.file("input")) == {"column": "Age"}
    assert layout.mounts[1].target == "/app/vantage6/task/session/mydf.parquet"
    bench.databases["other"] = Database(label="other", kind="parquet", where=bench.data / "other.parquet")
    assert decoded(bench.lay_out(profile="v5").env)["USER_REQUESTED_DATAFRAMES"] == "mydf;other"
    groups = [[{"label": "other"}, {"label": "mydf"}], [{"label": "mydf"}]]
    layout = bench.lay_out(json.dumps(CALL | {"databases": groups}).encode(), profile="v5", central=True)
    assert layout.env["USER_REQUESTED_DATAFRAMES"] == encoded("other,mydf;mydf")
    token = jwt.decode(layout.env["CONTAINER_TOKEN"], options={"verify_signature": False})["sub"]
    assert (token["databases"], token["session_id"]) == (groups, None)
    with pytest.raises(InvalidInput, match="does not name: none"):
        bench.lay_out(json.dumps(CALL | {"databases": [{"label": "none"}]}).encode(), profile="v5")
    bench.table("default", "default.csv")
    with pytest.raises(InvalidInput, match="Parquet"):
        bench.lay_out(profile="v5")


def test_databases_of_one_name_folders_and_addresses_have_places_of_their_own(bench: Bench) -> None:
    (bench.data / "north").mkdir()
    bench.table("second", "north/default.csv")
    bench.databases["scans"] = Database(label="scans", kind="folder", where=bench.data / "north")
    bench.databases["db"] = Database(label="db", kind="url", where="postgresql://u:p@h/d", options={"dbms": "pg"})
    env = decoded(bench.lay_out().env)
    assert env["DEFAULT_DATABASE_URI"] == "/mnt/data/default.csv"
    assert env["SECOND_DATABASE_URI"] == "/mnt/data/second.csv"
    assert env["SCANS_DATABASE_URI"] == "/mnt/scans"
    assert (env["DB_DATABASE_URI"], env["DB_DATABASE_TYPE"]) == ("postgresql://u:p@h/d", "other")
    assert env["DB_DB_PARAM_DBMS"] == "pg"
    assert env["USER_REQUESTED_DATABASE_LABELS"] == "default,second,scans,db"
    bench.table("DEFAULT", "capital.csv")
    with pytest.raises(InvalidInput, match="capitals"):
        bench.lay_out()


def test_each_table_that_was_selected_is_a_database(bench: Bench) -> None:
    (bench.folder / INPUT / "patients.csv").write_text("age\n1\n")
    layout = bench.lay_out(databases=(), selections=(Selection(query="{ patients { age } }"),))
    env = decoded(layout.env)
    assert env["USER_REQUESTED_DATABASE_LABELS"] == "patients"
    assert env["PATIENTS_DATABASE_URI"] == layout.mounts[1].target == "/mnt/data/patients.csv"
    assert layout.mounts[1].read_only


def test_a_query_of_the_task_is_a_variable_and_not_in_the_input(bench: Bench) -> None:
    asked = [{"label": "default", "query": "SELECT 1", "preprocessing": [{"function": "filter_range"}]}]
    env = decoded(bench.lay_out(json.dumps(CALL | {"databases": asked}).encode()).env)
    assert env["DEFAULT_QUERY"] == "SELECT 1"
    assert json.loads(env["DEFAULT_PREPROCESSING"]) == [{"function": "filter_range"}]
    assert json.loads(bench.file("input")) == CALL
    claims = jwt.decode(bench.file("token").decode(), options={"verify_signature": False})
    assert claims["sub"]["databases"] == asked


def test_the_folder_of_a_group_is_the_temporary_folder(bench: Bench, tmp_path: Path) -> None:
    layout = bench.lay_out(site={"group": tmp_path / "group"})
    assert layout.tmpfs == ()
    assert (layout.mounts[-1].source, layout.mounts[-1].target) == (tmp_path / "group", "/mnt/tmp")


def test_variables_of_the_site_are_encoded_too(bench: Bench) -> None:
    assert decoded(bench.lay_out(site={"variables": {"MODE": "ABCDEFGH"}}).env)["MODE"] == "ABCDEFGH"


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_goes_through_as_it_is_and_is_never_loaded(bench: Bench, tmp_path: Path) -> None:
    payload = pickle.dumps(Bomb(tmp_path / "boom"))
    bench.lay_out(payload, profile="v2")
    assert bench.file("input") == payload
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"[]", "method"),
        (b'{"method": 1}', "method"),
        (b'{"method": "f", "args": {}}', "args"),
        (b'{"method": "f", "kwargs": []}', "kwargs"),
        (b'{"method": "f", "databases": "default"}', "databases"),
    ],
)
def test_a_payload_that_the_wrapper_could_not_use_is_refused(bench: Bench, payload: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        bench.lay_out(payload)


def test_what_does_not_fit_the_contract_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidInput, match="v9"):
        bench.lay_out(profile="v9")
    with pytest.raises(InvalidInput, match="one executor"):
        bench.lay_out(executors=(Executor(image=IMAGE), Executor(image=IMAGE)))
    with pytest.raises(InvalidInput, match="no database x"):
        bench.lay_out(databases=("x",))
    with pytest.raises(InvalidInput, match="TRACE looks encoded"):
        bench.lay_out(executors=(Executor(image=IMAGE, env={"TRACE": "ABCDEFGH"}),))


@given(st.text())
def test_what_is_encoded_is_decoded_as_the_wrapper_does(text: str) -> None:
    assert base64.b32decode(encoded(text).replace("!", "=")).decode() == text
    require_readable({"X": encoded(text.replace("\0", ""))})


@given(st.binary() | st.just(b"[" * 100_000))
def test_any_bytes_are_an_input_or_are_refused(payload: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        read_input(payload)


def test_the_output_is_taken_as_it_is_within_its_limit(bench: Bench) -> None:
    bench.lay_out(site={"output_bytes": 4})
    (bench.folder / "vantage6" / "output").write_bytes(b"NaN!")
    [output] = bench.contract.collect(bench.spec, bench.folder, bench.site)
    assert (output.name, output.path.read_bytes()) == ("output", b"NaN!")
    (bench.folder / "vantage6" / "output").write_bytes(b"12345")
    with pytest.raises(BadOutput, match="more than 4 bytes"):
        bench.contract.collect(bench.spec, bench.folder, bench.site)


def test_an_output_that_is_a_link_is_none(bench: Bench) -> None:
    bench.lay_out()
    output = bench.folder / "vantage6" / "output"
    output.unlink()
    output.symlink_to(bench.data / "default.csv")
    with pytest.raises(BadOutput, match="no output"):
        bench.contract.collect(bench.spec, bench.folder, bench.site)


def test_sites_of_one_number_are_told_apart() -> None:
    names = [f"site-{number}" for number in range(2000)]
    numbered = numbered_sites(names)
    assert sorted(numbered.values()) == sorted(names)
    assert all(0 < number < 2**31 for number in numbered)
