"""What containers of PyTaskManager find at a site, and what of theirs leaves it."""

from __future__ import annotations

import base64
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.client.tasks.contract import Database, Layout, Produced, TaskSite
from runnel.client.tasks.discretion import Discretion
from runnel.client.tasks.pytaskmanager import PyTaskManagerContract
from runnel.client.tasks.pytaskmanager_site import read_pytaskmanager
from runnel.common.errors import BadOutput, BadSettings, InvalidInput
from runnel.common.protocol import TaskOrder
from runnel.common.tasks import TaskSpec
from runnel.common.tasks.pytaskmanager import pytaskmanager_task, run_group

pytestmark = pytest.mark.unit

TOKEN = "a-secret-of-the-endpoint"
ENDPOINT = "http://dockerhost:7200/repositories/data"
SETTINGS = {"endpoint_url": ENDPOINT, "endpoint_type": "SPARQL", "endpoint_token": TOKEN, "docker_host": "172.17.0.1"}
CONTRACT = PyTaskManagerContract()


def spec_of(run_id: str = "10", profile: str | None = None, text: bytes = b"echo hi") -> TaskSpec:
    return pytaskmanager_task(image="a/b", run_id=run_id, text=text, profile=profile, source="a test")


def laid_out(folder: Path, spec: TaskSpec, site: TaskSite) -> Layout:
    order = TaskOrder(run_id="run-1", client="site", task_id="tsk-1", organisation="o", user="u", spec=spec.as_json())
    if spec.payload is not None and spec.payload.data is not None:
        (folder / "payload").write_bytes(spec.payload.data)
    return CONTRACT.lay_out(order, spec, folder, site)


def site_with(settings: Mapping[str, str] = SETTINGS, group: Path | None = None, **more: object) -> TaskSite:
    return TaskSite(name="site", settings=settings, group=group, **more)  # type: ignore[arg-type]


def places(layout: Layout) -> dict[str, Path]:
    assert not any(mount.read_only for mount in layout.mounts)
    return {mount.target: mount.source for mount in layout.mounts}


def texts(produced: object) -> dict[str, bytes]:
    assert isinstance(produced, list)
    assert all(isinstance(each, Produced) and each.media_type == "text/plain" for each in produced)
    return {each.name: each.path.read_bytes() for each in produced}


def test_files_variables_and_names_are_those_of_their_client(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    layout = laid_out(tmp_path, spec_of(), site_with(group=group))
    seen = places(layout)
    assert seen["/tmp"] == group
    assert {each.name: each.read_bytes() for each in seen["/input_output"].iterdir()} == {
        "input.txt": b"echo hi",
        "output.txt": b"",
        "log.txt": b"",
    }
    assert layout.env == {
        "RUN_ID": "10",
        "SPARQL_ENDPOINT": ENDPOINT,
        "endpointUrl": ENDPOINT,
        "endpointType": "SPARQL",
        "endpointToken": TOKEN,
        "DATABASE_URI": "",
    }
    assert layout.hosts == {"dockerhost": "172.17.0.1"}
    assert TOKEN not in repr(layout)


def test_the_older_layout_is_had_by_profile_and_by_setting(tmp_path: Path) -> None:
    wanted = {"/input.txt", "/output.txt", "/log.txt", "/output", "/temp"}
    for number, (spec, site) in enumerate(
        [(spec_of(profile="files"), site_with()), (spec_of(), site_with(SETTINGS | {"profile": "files"}))]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        layout = laid_out(folder, spec, site)
        assert places(layout).keys() == wanted
        assert places(layout)["/input.txt"].read_bytes() == b"echo hi"


def test_the_layout_of_the_package_has_the_database(tmp_path: Path) -> None:
    database = Database(label="default", kind="sql", where="postgresql://here/data")
    for number, (settings, wanted) in enumerate(
        [(SETTINGS, "postgresql://here/data"), (SETTINGS | {"database_uri": "sqlite:///x"}, "sqlite:///x")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        site = site_with(settings, databases={"default": database})
        layout = laid_out(folder, spec_of(profile="app"), site)
        assert places(layout).keys() == {"/app/input.txt", "/app/output.txt"}
        assert layout.env["DATABASE_URI"] == wanted


def test_an_unknown_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no profile 'folders'"):
        laid_out(tmp_path, spec_of(profile="folders"), site_with())


def test_what_it_wrote_is_collected_without_the_token(tmp_path: Path) -> None:
    site = site_with()
    own = places(laid_out(tmp_path, spec_of(), site))["/input_output"]
    # The token lies across the blocks in which files are copied.
    before = b"x" * ((1 << 20) - 5)
    (own / "output.txt").write_bytes(before + TOKEN.encode() + b"after" + TOKEN[:4].encode())
    (own / "log.txt").write_bytes(b"token: " + TOKEN.encode() + TOKEN.encode())
    found = texts(CONTRACT.collect(spec_of(), tmp_path, site))
    assert found["output"] == before + b"[secret of the site]after" + TOKEN[:4].encode()
    assert found["log"] == b"token: [secret of the site][secret of the site]"


def test_the_folder_of_the_older_layout_is_given_out_as_an_archive(tmp_path: Path) -> None:
    site = site_with({})
    spec = spec_of(profile="files")
    seen = places(laid_out(tmp_path, spec, site))
    assert {each.name for each in CONTRACT.collect(spec, tmp_path, site)} == {"output", "log"}
    (tmp_path / "taken" / "files.zip").unlink()
    (seen["/output"] / "model.bin").write_bytes(b"weights")
    (seen["/output"] / "passwd").symlink_to("/etc/passwd")
    [archive] = [each for each in CONTRACT.collect(spec, tmp_path, site) if each.name == "files"]
    with zipfile.ZipFile(archive.path) as opened:
        assert {name: opened.read(name) for name in opened.namelist()} == {"model.bin": b"weights"}


@given(st.lists(st.sampled_from(["secret-a", "secret-ab", "secr", "et-a", "x", "secret-asecret-ab"]), max_size=30))
def test_whatever_is_put_together_no_secret_is_left(parts: list[str]) -> None:
    secrets = ["secret-a", "secret-ab", "short"]
    source, target = io.BytesIO("".join(parts).encode()), io.BytesIO()
    discretion = Discretion(secrets)
    discretion.copy(source, target)
    told = target.getvalue().decode()
    assert "secret-a" not in told
    assert told == discretion.text("".join(parts))


def test_only_files_of_its_own_leave(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the site")
    site = site_with({})
    own = places(laid_out(tmp_path, spec_of(), site))["/input_output"]
    for name in ("output.txt", "log.txt"):
        (own / name).unlink()
    (own / "output.txt").symlink_to(secret)
    os.mkfifo(own / "log.txt")
    assert texts(CONTRACT.collect(spec_of(), tmp_path, site)) == {"output": b"", "log": b""}


def test_output_and_log_share_a_limit(tmp_path: Path) -> None:
    site = site_with({}, output_bytes=10)
    own = places(laid_out(tmp_path, spec_of(), site))["/input_output"]
    (own / "output.txt").write_bytes(b"123456")
    (own / "log.txt").write_bytes(b"1234")
    assert texts(CONTRACT.collect(spec_of(), tmp_path, site)) == {"output": b"123456", "log": b"1234"}
    (own / "log.txt").write_bytes(b"12345")
    with pytest.raises(BadOutput, match="the 4 bytes that are left"):
        CONTRACT.collect(spec_of(), tmp_path, site)


@pytest.mark.parametrize("run_id", ["../../etc", "a b", "é", "x" * 65, "-rf", "$(id)"])
def test_a_run_id_that_names_no_folder_is_still_told_as_it_is(tmp_path: Path, run_id: str) -> None:
    spec = spec_of(run_id)
    assert spec.group == run_group(run_id) != run_id
    assert spec.group.isascii()
    assert "/" not in spec.group
    assert laid_out(tmp_path, spec, site_with()).env["RUN_ID"] == run_id


@pytest.mark.parametrize("image", ["a; id", "$(id)", "-v /:/host", "a\nb", "a/B", "", "../a", "a b", "`id`", "a|b"])
def test_names_of_images_that_a_shell_would_take_apart_are_refused(image: str) -> None:
    with pytest.raises(InvalidInput, match="should name an image"):
        pytaskmanager_task(image=image, run_id="1", text=b"", source="a test")


def test_an_input_travels_byte_for_byte() -> None:
    text = bytes(range(256))
    spec = spec_of(text=text)
    assert spec.payload is not None
    assert spec.payload.data == text
    assert base64.b64encode(text).decode() in spec.as_json()


# ---- config.json


def test_the_configuration_of_their_client_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        '{"name": "My Name", "institute": "i", "country": "c", "interval": 5, "endpointUrl": "http://localhost:7200",'
        ' "endpointType": "FHIR", "masterUrl": "http://master", "dockerHost": "172.17.0.1", "email": "e",'
        f' "endpointToken": "{TOKEN}", "id": 3, "profile": "files"}}'
    )
    assert read_pytaskmanager(path) == {
        "endpoint_url": "http://localhost:7200",
        "endpoint_type": "FHIR",
        "endpoint_token": TOKEN,
        "docker_host": "172.17.0.1",
        "profile": "files",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "should be JSON"),
        ("[]", "object of texts"),
        ('{"endpointToken": ["' + TOKEN + '"]}', "wrong: endpointToken"),
        ('{"profile": "plural"}', "wrong: profile"),
    ],
)
def test_a_wrong_configuration_is_named_without_what_is_in_it(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(BadSettings, match=told) as raised:
        read_pytaskmanager(path)
    assert TOKEN not in str(raised.value)


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="can't be read: No such file"):
        read_pytaskmanager(tmp_path / "none.json")
