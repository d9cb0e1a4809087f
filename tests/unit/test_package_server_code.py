"""A package's functions for the server are found by reading; what could not be run is refused where it is packed."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from runnel.client.recognition import recognise
from runnel.client.runtimes import Installs
from runnel.common.errors import BadPackage, InvalidInput
from runnel.compute_package import ServerCode, describe, pack, read_manifest
from runnel.reducer.domain.session_rules import check_server_functions
from runnel.reducer.domain.values import SessionConfig

pytestmark = pytest.mark.unit

CLASS = """
    raise SystemExit("nothing of this is run")
    from fedn.network.combiner.hooks.allowed_import import ServerFunctionsBase

    class ServerFunctions(ServerFunctionsBase):
        def client_settings(self, global_model): ...
        def incremental_aggregate(self, client_id, model, client_metadata, previous_global): ...
        def get_incremental_aggregate_model(self): ...
        def aggregate(self, previous_global, client_updates): ...
        def something_else(self): ...
"""
BOTH = ServerCode(file="server.py", functions=("client_settings", "aggregate", "incremental_aggregate"))


def package(folder: Path, server: str | None = CLASS, **files: str) -> Path:
    texts = {"train.py": "", "server.py": server} | {name.replace("_", "."): text for name, text in files.items()}
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(dedent(text))
    return folder


@pytest.mark.parametrize(
    "files", [{}, {"runnel_yaml": "name: x"}, {"fedn_yaml": "entry_points: {train: {command: x}}"}]
)
def test_a_server_file_beside_the_scripts_is_found(tmp_path: Path, files: dict[str, str]) -> None:
    assert read_manifest(package(tmp_path, **files)).server == BOTH
    assert (BOTH.selects, BOTH.begins, BOTH.aggregator) == (False, True, "incremental_aggregate")
    assert ServerCode.from_json(BOTH.as_json()) == BOTH


def test_a_manifest_names_another_file_or_none(tmp_path: Path) -> None:
    other = "class ServerFunctions:\n    client_selection = sorted"
    folder = package(tmp_path, decide_py=other, runnel_yaml="server: decide.py")
    assert read_manifest(folder).server == ServerCode(file="decide.py", functions=("client_selection",))
    (folder / "runnel.yaml").write_text("server: null")
    assert read_manifest(folder).server is None


@pytest.mark.parametrize("server", [None, "import flask", "# of ServerFunctions\nx = 1"])
def test_another_server_is_nobodys_business(tmp_path: Path, server: str | None) -> None:
    assert read_manifest(package(tmp_path, server)).server is None


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ("class ServerFunctions:\n    def x(self) ...", "can not be read as Python"),
        ("class ServerFunctions:\n    def select(self): ...", "defines none of client_selection, client_settings"),
        ("class ServerFunctions:\n    def incremental_aggregate(self): ...", "and not get_incremental_aggregate_model"),
        ("class ServerFunctions: ..." + "#" * (1 << 20), "larger than 1024 KiB"),
    ],
)
def test_what_could_not_be_run_is_refused(tmp_path: Path, server: str, says: str) -> None:
    with pytest.raises(BadPackage, match=says):
        read_manifest(package(tmp_path, server))


def test_a_file_that_is_named_has_to_have_the_class(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match="has no class ServerFunctions"):
        read_manifest(package(tmp_path, "x = 1", runnel_yaml="server: server.py"))
    with pytest.raises(BadPackage, match="which the package does not have"):
        read_manifest(package(tmp_path, None, runnel_yaml="server: decide.py"))


def test_people_are_told(tmp_path: Path) -> None:
    folder = package(tmp_path)
    found = recognise(read_manifest(folder), folder, top=folder, installs=Installs())
    assert found["server_functions"] == "client_settings, aggregate, incremental_aggregate in server.py"
    assert describe(pack(folder, tmp_path.with_suffix(".tar.gz")).path).manifest.server == BOTH


@pytest.mark.parametrize(
    ("functions", "config", "field"),
    [
        (("aggregate",), {"strategy": "fedadam"}, "strategy"),
        (("aggregate",), {"strategy_options": {"learning_rate": 0.5}}, "strategy"),
        (("client_selection",), {"sample": 3}, "sample"),
        (("client_settings",), {"strategy": "fedbuff", "buffer": 2}, "strategy"),
        (("client_settings",), {"strategy": "fedadam", "sample": 0.5}, None),
        (("client_selection",), {"strategy": "median"}, None),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    functions: tuple[str, ...], config: dict[str, object], field: str | None
) -> None:
    asked, code = SessionConfig(rounds=1, **config), ServerCode(file="server.py", functions=functions)  # type: ignore[arg-type]
    if field is None:
        check_server_functions(asked, code)
        return
    with pytest.raises(InvalidInput) as caught:
        check_server_functions(asked, code)
    assert caught.value.fields["field"] == field
