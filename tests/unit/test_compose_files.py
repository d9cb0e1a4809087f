"""The compose files: whole in themselves, and their settings are settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from runnel.client.settings import ClientSettings
from runnel.combiner.settings import CombinerSettings
from runnel.common.settings import load_settings
from runnel.reducer.settings import ReducerSettings
from runnel.transport import parse_address

pytestmark = pytest.mark.unit

DEPLOY = Path(__file__).parents[2] / "deploy"
SETTINGS: dict[str, type[BaseModel]] = {
    "reducer": ReducerSettings,
    "combiner": CombinerSettings,
    "client": ClientSettings,
}
COMPONENTS = ["reducer", "combiner-1", "combiner-2", "client-1", "client-2"]


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return content


COMPOSE = read("compose.yaml")
WITH_POSTGRESQL = read("compose.postgresql.yaml")


def role_of(name: str) -> str:
    return name.partition("-")[0]


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_variables_of_a_service_are_settings_of_its_component(name: str, tmp_path: Path) -> None:
    service, role = COMPOSE["services"][name], role_of(name)
    (tmp_path / "secret").write_text("rnl_secret")
    environ = {
        key: str(tmp_path / "secret") if key.endswith("_FILE") and key.startswith(f"RUNNEL_{role.upper()}") else value
        for key, value in service["environment"].items()
    }
    settings: Any = load_settings(
        SETTINGS[role], flags={}, environ=environ, prefix=f"RUNNEL_{role.upper()}_", file=None
    )
    assert not settings.insecure
    assert not settings.allow_plaintext
    if role != "reducer":
        assert settings.name == name
        assert settings.token.get_secret_value() == "rnl_secret"
        above = COMPOSE["services"][parse_address(settings.network).host]
        assert set(above["networks"]) & set(service["networks"])


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_service_is_in_the_cage_in_which_the_images_are_tested(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["build"]["dockerfile"] == f"{role_of(name)}/Dockerfile"
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert (service["read_only"], service["init"], service["tmpfs"]) == (True, True, ["/tmp"])
    assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert f"{name}-state:/state" in service["volumes"]
    assert "user" not in service


def test_clients_and_the_reducer_share_no_network() -> None:
    services = COMPOSE["services"]
    for name in ("client-1", "client-2"):
        assert not set(services[name]["networks"]) & set(services["reducer"]["networks"])


@pytest.mark.parametrize("files", [(COMPOSE,), (COMPOSE, WITH_POSTGRESQL)], ids=["sqlite", "postgresql"])
def test_what_services_use_is_declared_and_what_is_declared_is_used(files: tuple[dict[str, Any], ...]) -> None:
    for kind in ("networks", "secrets", "volumes"):
        declared = {name for file in files for name in file[kind]}
        used = {
            use.partition(":")[0]
            for file in files
            for service in file["services"].values()
            for use in service.get(kind, ())
            if "/" not in use.partition(":")[0] and not use.startswith("$")
        }
        assert used == declared
    for file in files:
        for service in file["services"].values():
            for value in service["environment"].values():
                if value.startswith("/run/secrets/"):
                    assert value.removeprefix("/run/secrets/") in service["secrets"] or value.endswith("ca.pem")


def test_postgresql_adds_a_database_to_the_reducer() -> None:
    reducer = WITH_POSTGRESQL["services"]["reducer"]
    assert list(reducer["environment"]) == ["RUNNEL_REDUCER_DATABASE_FILE"]
    assert "postgresql" in reducer["depends_on"]


@pytest.mark.parametrize("name", ["build", "reducer", "combiner", "client"])
def test_images_have_the_versions_that_are_tested(name: str) -> None:
    def pins(file: str) -> set[str]:
        lines = (DEPLOY.parent / "requirements" / f"{file}.txt").read_text().splitlines()
        return {line.split()[0] for line in lines if line[:1].isalnum()}

    assert pins(name)
    assert pins(name) <= pins("dev")


@pytest.mark.parametrize("role", SETTINGS)
def test_the_steps_that_images_share_are_the_same(role: str) -> None:
    def shared(of: str) -> str:
        text = (DEPLOY.parent / of / "Dockerfile").read_text()
        return text[text.index("ARG BASE=") : text.index("# ---- this component")]

    assert shared(role) == shared("reducer")
