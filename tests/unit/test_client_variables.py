"""What entry points see, what the installer sees, and what neither does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.client.runtimes import entry_point_variables, process_variables, site_variables
from runnel.client.runtimes.variables import data_variable, installer_variables
from runnel.common.errors import BadSettings

pytestmark = pytest.mark.unit

CLIENT = {
    "PATH": "/bin",
    "HOME": "/home/site",
    "LANG": "C.UTF-8",
    "LC_NUMERIC": "de_DE",
    "TZ": "UTC",
    "TMPDIR": "/scratch",
    "USER": "site",
    "LD_LIBRARY_PATH": "/opt/lib",
    "SSL_CERT_FILE": "/ca.pem",
    "RUNNEL_TOKEN": "secret",
    "RUNNEL_CLIENT_TOKEN": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "DATABASE_URL": "secret",
    "PYTHONPATH": "/elsewhere",
    "PYTHONSTARTUP": "/elsewhere",
    "LD_PRELOAD": "/elsewhere",
    "UV_INDEX_URL": "an index with a password",
    "PIP_INDEX_URL": "an index with a password",
    "https_proxy": "a proxy with a password",
    "REQUESTS_CA_BUNDLE": "/ca.pem",
    "UV_SYSTEM_PYTHON": "1",
}
NEEDED = {"PATH", "HOME", "LANG", "LC_NUMERIC", "TZ", "TMPDIR", "USER", "LD_LIBRARY_PATH", "SSL_CERT_FILE"}


def test_a_process_gets_what_it_needs_and_no_more() -> None:
    assert process_variables(CLIENT) == {name: CLIENT[name] for name in NEEDED} | {"PYTHONUNBUFFERED": "1"}
    assert process_variables({})["PATH"]


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_no_other_name_ever_passes(environ: dict[str, str]) -> None:
    passed = process_variables({f"X{key}": value for key, value in environ.items()})
    assert passed.keys() == {"PATH", "PYTHONUNBUFFERED"}


def test_only_the_installer_sees_indexes_and_proxies() -> None:
    extra = {"UV_INDEX_URL", "PIP_INDEX_URL", "https_proxy", "REQUESTS_CA_BUNDLE"}
    assert installer_variables(CLIENT).keys() == NEEDED | extra | {"PYTHONUNBUFFERED"}


def test_the_contract_with_entry_points() -> None:
    variables = entry_point_variables(
        client_name="hospital-a",
        session_id="ses-1",
        round_number=3,
        data={"default": Path("/data/a"), "lab-results": "postgresql://host/db", "x.y": Path("rel")},
        site={"OMP_NUM_THREADS": "2"},
    )
    assert variables == {
        "RUNNEL_CLIENT_NAME": "hospital-a",
        "RUNNEL_SESSION": "ses-1",
        "RUNNEL_ROUND": "3",
        "RUNNEL_DATA": "/data/a",
        "RUNNEL_DATA_LAB_RESULTS": "postgresql://host/db",
        "RUNNEL_DATA_X_Y": str(Path("rel").absolute()),
        "OMP_NUM_THREADS": "2",
    }
    assert entry_point_variables(client_name="a") == {"RUNNEL_CLIENT_NAME": "a"}


def test_two_databases_of_one_variable_are_refused() -> None:
    with pytest.raises(BadSettings, match=r"'a-b' and 'A\.b' would both be the variable RUNNEL_DATA_A_B"):
        entry_point_variables(client_name="c", data={"a-b": "1", "A.b": "2"})


@pytest.mark.parametrize("name", ["", "a b", "ä", "a=b", "a\n", "a/b"])
def test_a_database_name_that_no_variable_can_have(name: str) -> None:
    with pytest.raises(BadSettings, match="letters, digits"):
        data_variable(name)


def test_a_site_names_what_it_passes_on() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "0", "OTHER": "x"}
    wanted = ["CUDA_VISIBLE_DEVICES", "NOT_SET", "OMP_NUM_THREADS=2", "EMPTY=", "EQ=a=b"]
    assert site_variables(wanted, environ) == {
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "2",
        "EMPTY": "",
        "EQ": "a=b",
    }


@pytest.mark.parametrize("wanted", ["RUNNEL_TOKEN", "RUNNEL_DATA=/x", "runnel_token"])
def test_a_site_can_not_pass_on_what_belongs_to_the_client(wanted: str) -> None:
    with pytest.raises(BadSettings, match="RUNNEL_ names belong to the client"):
        site_variables([wanted], {"RUNNEL_TOKEN": "secret"})


@pytest.mark.parametrize("wanted", ["", "1X", "A B", "=x"])
def test_a_site_names_variables_by_names(wanted: str) -> None:
    with pytest.raises(BadSettings, match="Expected NAME or NAME=VALUE"):
        site_variables([wanted], {})
