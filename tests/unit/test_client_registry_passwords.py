"""Passwords of registries: whose they are, where they are looked for, and what is said where they can't be read."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from runnel.client.runtimes.registry_passwords import RegistryPasswords
from runnel.common.errors import BadSettings, EnvironmentFailed

pytestmark = pytest.mark.unit


def entry(password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"ada:{password}".encode()).decode()}


def written(folder: Path, document: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_an_image_gets_the_password_of_its_own_registry_only(tmp_path: Path) -> None:
    auths = {
        "registry.example.org": entry("p:1"),
        "https://index.docker.io/v1/": entry("p2"),
        "https://old.example.org/v1/": {"identitytoken": "t3"},
        "10.0.0.1:5000": {},
    }
    passwords = RegistryPasswords(written(tmp_path, {"auths": auths, "psFormat": "x"}), {})
    passwords.require()
    assert passwords.of("registry.example.org/study/a:1") == {"username": "ada", "password": "p:1"}
    docker = {"username": "ada", "password": "p2"}
    assert passwords.of("python:3") == passwords.of("docker.io/library/python:3") == passwords.of("a/b") == docker
    assert passwords.of("old.example.org/a") == {"identitytoken": "t3"}
    for other in ("10.0.0.1:5000/a", "registry.example.org.evil.org/a", "localhost/a", "registry.example.org:443/a"):
        assert passwords.of(other) is None


def test_they_are_looked_for_where_dockers_command_keeps_them(tmp_path: Path) -> None:
    written(tmp_path / "home" / ".docker", {"auths": {"registry.example.org": entry("home")}})
    written(tmp_path / "own", {"auths": {"registry.example.org": entry("own")}})
    home = {"HOME": str(tmp_path / "home")}
    found = RegistryPasswords(None, home).of("registry.example.org/a")
    assert found is not None
    assert found["password"] == "home"
    found = RegistryPasswords(None, home | {"DOCKER_CONFIG": str(tmp_path / "own")}).of("registry.example.org/a")
    assert found is not None
    assert found["password"] == "own"
    for nothing in ({}, {"HOME": str(tmp_path)}):
        RegistryPasswords(None, nothing).require()
        assert RegistryPasswords(None, nothing).of("registry.example.org/a") is None


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        {"auths": {"registry.example.org": {"auth": "c2VjcmV0"}}},
        {"auths": {"registry.example.org": "secret"}},
    ],
)
def test_a_file_that_is_something_else_is_refused_at_the_start_and_tells_nothing_to_those_who_ask(
    tmp_path: Path, document: Any
) -> None:
    passwords = RegistryPasswords(written(tmp_path, document), {})
    with pytest.raises(BadSettings, match=r"can't be read as Docker's config\.json") as caught:
        passwords.require()
    assert "secret" not in str(caught.value)
    with pytest.raises(EnvironmentFailed, match=r"so registry\.example\.org was not asked") as failed:
        passwords.of("registry.example.org/a")
    assert str(tmp_path) not in str(failed.value)


def test_a_file_that_is_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="There is no file"):
        RegistryPasswords(tmp_path / "none.json", {}).require()


def test_a_helper_that_is_not_installed_fails_what_needs_it_only(tmp_path: Path) -> None:
    config = written(
        tmp_path, {"credHelpers": {"registry.example.org": "none"}, "auths": {"second.example.org": entry("q")}}
    )
    passwords = RegistryPasswords(config, {"PATH": str(tmp_path)})
    assert passwords.of("second.example.org/a") == {"username": "ada", "password": "q"}
    with pytest.raises(EnvironmentFailed):
        passwords.of("registry.example.org/a")
