"""What sites publish of their data, through real clients, combiners and a reducer, as people read it."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from runnel.common.protocol import CatalogueNews, CatalogueWanted, NodeKind
from tests.doubles.fds_documents import Datasets, DcatEntry, Dictionaries, Dictionary, SelectionSuccess
from tests.doubles.hostile_node import HostileNode
from tests.eventually import eventually
from tests.network.local_network import LocalNetwork

pytestmark = [pytest.mark.network, pytest.mark.timeout(60)]

AGE = '{name = "age", type = "integer", label = "Age", constraints = {minimum = 0}}'
SEX = '{name = "sex", type = "text", lookup = "SEX"}'


def databases_file(folder: Path, name: str, *, publish: bool = True, fields: str = f"{AGE}, {SEX}") -> Path:
    """Write the file of a site with the dataset ``heart`` and a database that is its own."""
    (folder / "patients.csv").write_text("age,sex\n61,f\n62,m\n")
    file = folder / f"{name}.toml"
    file.write_text(
        f"""
[databases.heart]
type = "csv"
path = "patients.csv"
publish = {str(publish).lower()}
title = "Heart study"
creator = "Ada"

[databases.heart.lookups.SEX]
f = "female"
m = "male"

[databases.heart.dictionary.patients]
description = "one row for each"
fields = [{fields}]

[databases.own]
type = "csv"
path = "patients.csv"
"""
    )
    return file


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[LocalNetwork]:
    async with LocalNetwork(tmp_path) as network:
        yield network


async def listed(net: LocalNetwork) -> dict[str, list[str]]:
    answer = (await net.http.get("/datasets")).raise_for_status()
    return {each["id"]: each["sites"] for each in answer.json()["items"]}


async def until_listed(net: LocalNetwork, **wanted: list[str]) -> None:
    async def same() -> bool:
        return await listed(net) == wanted

    await eventually(same, timeout_s=20)


async def fds(net: LocalNetwork, path: str, status: int = 200) -> Any:
    async with httpx.AsyncClient(base_url=net.reducer.url, trust_env=False) as http:
        answer = await http.get(path)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.usefixtures("each_database")
async def test_a_dataset_of_three_sites_is_listed_once_and_kept_through_restarts(net: LocalNetwork) -> None:
    await net.start_combiner("c1")
    for name, fields in (("a", f"{AGE}, {SEX}"), ("b", f"{AGE}, {SEX}"), ("c", AGE)):
        await net.start_client(name, prefer="c1", databases=databases_file(net.folder, name, fields=fields))
    await until_listed(net, heart=["a", "b", "c"])
    shown = (await net.http.get("/datasets/heart")).raise_for_status().json()
    assert (shown["title"], shown["creator"], shown["sites"]) == ("Heart study", "Ada", ["a", "b", "c"])
    tables = [(each["name"], each["sites"], [field["name"] for field in each["fields"]]) for each in shown["tables"]]
    assert tables == [("patients", ["a", "b"], ["age", "sex"]), ("patients", ["c"], ["age"])]
    assert shown["tables"][0]["lookups"] == {"SEX": {"f": "female", "m": "male"}}
    # As clients of Federated Data Sharing read it.
    assert Datasets.model_validate(await fds(net, "/datasets")).datasets[0].dataset_name == "Heart study"
    whole = await fds(net, "/datasets/heart")
    assert DcatEntry.model_validate(whole["catalogue"]).creator == "Ada"
    assert whole["catalogue"] == await fds(net, "/datasets/heart/catalogue")
    assert {"dictionaries": whole["dictionaries"]} == await fds(net, "/datasets/heart/dictionaries")
    Dictionaries.model_validate({"dictionaries": whole["dictionaries"]})
    one = Dictionary.model_validate(await fds(net, "/datasets/heart/dictionaries/patients"))
    assert [(each.name, each.label, each.constraints) for each in one.fields] == [
        ("age", "Age", "minimum 0"),
        ("sex", "sex", "SEX"),
    ]
    assert [(each.name, each.description) for each in one.lookups["SEX"]] == [("f", "female"), ("m", "male")]
    assert len((await fds(net, "/datasets/heart/dictionaries/patients?site=c"))["fields"]) == 1
    for nothing in ("/datasets/lungs", "/datasets/lungs/catalogue", "/datasets/heart/dictionaries/visits"):
        assert (await fds(net, nothing, 404))["message"]
    # A site that is away stays listed; what one withdraws goes, and a restart asks nobody for what is known.
    await net.stop("a")
    assert await listed(net) == {"heart": ["a", "b", "c"]}
    await net.stop("b")
    await net.start_client("b", prefer="c1", databases=databases_file(net.folder, "b", publish=False))
    await until_listed(net, heart=["a", "c"])
    await net.stop("reducer")
    await net.start_reducer()
    assert await listed(net) == {"heart": ["a", "c"]}
    await net.until_attached("c")
    assert await listed(net) == {"heart": ["a", "c"]}


def told(**said: Any) -> str:
    return json.dumps({"datasets": [{"id": "heart"} | said]})


def refused(logs: list[Any], client: str) -> int:
    return sum(each["event"] == "a catalogue that was not announced" and each["client"] == client for each in logs)


async def test_what_a_node_has_no_right_to_tell_or_nobody_can_read_is_not_kept(net: LocalNetwork) -> None:
    bad, good = told(title="\x1b[31m"), told(title="Heart")
    network, here = net.reducer.rpc_address, net.reducer.rpc_address
    with capture_logs() as logs:
        async with (
            HostileNode(network, "bad", at=here, catalogue=hashlib.sha256(bad.encode()).hexdigest()) as one,
            HostileNode(network, "good", at=here, catalogue=hashlib.sha256(good.encode()).hexdigest()) as other,
        ):
            for node, document in ((one, bad), (other, told(title="another than it announced"))):
                await node.until(CatalogueWanted)
                await node.say(CatalogueNews(client=node.name, document=document))
            await eventually(lambda: refused(logs, "good") == 1)
            await eventually(lambda: any(each["event"] == "what a client publishes can't be read" for each in logs))
            assert await listed(net) == {}
            await one.say(CatalogueNews(client="good", document=good))
            assert "speaks for good" in (await one.refusal()).message
            assert await listed(net) == {}
            await other.say(CatalogueNews(client="good", document=good))
            await until_listed(net, heart=["good"])
            assert (await net.http.get("/datasets/heart")).json()["title"] == "Heart"


async def test_what_a_combiner_says_of_clients_elsewhere_is_not_kept(net: LocalNetwork) -> None:
    document = told()
    digest = hashlib.sha256(document.encode()).hexdigest()
    here = net.reducer.rpc_address
    with capture_logs() as logs:
        async with (
            HostileNode(here, "site", at=here, catalogue=digest) as site,
            HostileNode(here, "m1", at=here, kind=NodeKind.COMBINER) as combiner,
        ):
            await site.until(CatalogueWanted)
            for client in ("site", "nobody", "m1"):
                await combiner.say(CatalogueNews(client=client, document=document))
            await eventually(lambda: [refused(logs, client) for client in ("site", "nobody", "m1")] == [1, 1, 1])
            assert await listed(net) == {}


# ---- selections


def policy_file(folder: Path, name: str, **rules: str) -> Path:
    file = folder / f"{name}.policy.toml"
    said = {"images": "[]", "select": "true"} | rules
    file.write_text("[tasks]\n" + "".join(f"{key} = {value}\n" for key, value in said.items()))
    return file


@pytest.fixture
async def selecting(net: LocalNetwork) -> AsyncIterator[httpx.AsyncClient]:
    """A network with two sites that let data be selected out, and one that does not let this caller."""
    await net.start_combiner("c1")
    for name, rules in (("a", {}), ("b", {"review": "true"}), ("closed", {"users": '["nobody"]'})):
        await net.start_client(
            name,
            prefer="c1",
            databases=databases_file(net.folder, name),
            policy=policy_file(net.folder, name, **rules),
        )
    await until_listed(net, heart=["a", "b", "closed"])
    async with httpx.AsyncClient(base_url=net.reducer.url, trust_env=False, timeout=40) as http:
        yield http


async def test_selections_by_federated_data_sharing(selecting: httpx.AsyncClient) -> None:
    query = "{ patients { age sex } }"
    good = await selecting.post("/selection/validate", json={"type": "graphql", "query": query})
    assert (good.status_code, good.json()) == (200, {"success": True, "type": "graphql", "query": query})
    SelectionSuccess.model_validate(good.json())
    for wrong, named in (
        ("{ visits { day } }", "visits"),
        ("patients { age, weight }", "weight"),
        ("{ patients(weight: {gt: 1}) { age } }", "weight"),
        ("{ patients { age ", "can't be read"),
    ):
        for path in ("validate", "select"):
            answer = await selecting.post(f"/selection/{path}", content=wrong, headers={"Content-Type": "text/plain"})
            assert (answer.status_code, named in answer.json()["message"]) == (400, True), answer.text
    assert (await selecting.post("/selection/validate", json={"query": "x", "dataset_id": "no"})).status_code == 404
    assert (await selecting.post("/selection/validate", json={"query": "x", "sites": ["z"]})).status_code == 400
    assert (await selecting.post("/selection/validate", json={"query": "{ t { a } }", "odd": 1})).status_code == 400
    sql = {"type": "sql", "query": "SELECT count(*) AS n FROM patients"}
    for path, body in (("validate", sql), ("beacon", {}), ("preview", {}), ("profile", {})):
        answer = await selecting.post(f"/selection/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (501, "unsupported"), answer.text
    given = await selecting.post("/selection/select?site=a", content='patients(sex: "f") { age }')
    assert (given.status_code, given.text) == (200, "age\r\n61\r\n"), given.text
    assert given.headers["content-type"].startswith("text/csv")
    assert 'filename="patients.csv"' in given.headers["content-disposition"]
    counted = await selecting.post("/selection/select", json=sql | {"sites": ["a"]})
    assert (counted.status_code, counted.text) == (200, "n\r\n2\r\n"), counted.text
    refused = await selecting.post("/selection/select?site=closed", content=query)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), refused.text
    assert "users" in refused.json()["message"]
    waits = await selecting.post("/selection/select", json={"query": query, "sites": ["b"]})
    assert (waits.status_code, waits.json()["status"]) == (202, "Pending Review"), waits.text
    assert (await selecting.get(waits.headers["location"])).status_code == 400
    several = await selecting.post("/selection/select?site=a&site=closed", content=query)
    assert several.status_code == 200
    with zipfile.ZipFile(io.BytesIO(several.content)) as archive:
        assert archive.read("a/patients.csv") == b"age,sex\r\n61,f\r\n62,m\r\n"
        assert {each["site"]: each["state"] for each in json.loads(archive.read("sites.json"))} == {
            "a": "done",
            "closed": "rejected",
        }
    shown = (await selecting.get(f"/tasks/{waits.json()['id']}?view=FULL")).json()
    assert (shown["state"], shown["executors"], shown["inputs"][0]["content"]) == ("PAUSED", [], query)


@pytest.mark.usefixtures("each_database")
async def test_a_task_is_validated_against_what_its_sites_publish(selecting: httpx.AsyncClient) -> None:
    def task(query: str, sites: str = "a") -> dict[str, Any]:
        return {
            "executors": [{"image": "a:1", "command": ["x"]}],
            "inputs": [{"content": query}],
            "tags": {"sites": sites, "dataset_id": "heart"},
        }

    async def validated(body: dict[str, Any]) -> Any:
        answer = await selecting.post("/tasks/validate", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert await validated(task("{ patients { age } }")) == {"success": "true"}
    assert await validated(task("{ patients { age } }", "a,b")) == {"success": "true"}
    wrong = await validated(task("{ patients { weight } }"))
    assert (wrong["success"], "'weight'" in wrong["message"]) == ("false", True)
    assert await validated(task("{ anything { at all } }", "elsewhere")) == {"success": "true"}
