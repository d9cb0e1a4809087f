from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr, model_validator

from runnel.common.errors import BadSettings
from runnel.common.ids import valid_name
from runnel.common.settings import OWN_PREFIX_ONLY, Bytes, checked, describe_settings, load_settings

pytestmark = pytest.mark.unit


class Limits(BaseModel, extra="forbid"):
    cpu_s: float = 60


class SiteSettings(BaseModel):
    name: Annotated[str, checked(valid_name)] = Field("site", description="Name of this node")
    heartbeat_s: float = Field(10, gt=0, description="Seconds between | signs of life")
    max_model_bytes: Annotated[Bytes, Field(gt=0)] = 1 << 30
    data: dict[str, Path] = Field(default_factory=dict)
    pass_variables: list[str] = Field(default_factory=list)
    token: str | None = None
    pin: SecretStr | None = None
    passwords: list[str] = Field(default_factory=list)
    log_format: Literal["console", "json"] = "console"
    limits: Limits = Limits()
    insecure: bool = False
    first_port: int = 1
    last_port: int = 9

    @model_validator(mode="after")
    def _ports(self) -> SiteSettings:
        if self.first_port > self.last_port:
            raise ValueError(f"first_port {self.first_port} is above last_port {self.last_port}")
        return self


def load(
    *, flags: dict[str, object] | None = None, environ: dict[str, str] | None = None, file: Path | None = None
) -> SiteSettings:
    return load_settings(SiteSettings, flags=flags or {}, environ=environ or {}, prefix="RUNNEL_CLIENT_", file=file)


def refusal(**places: object) -> str:
    with pytest.raises(BadSettings) as caught:
        load(**places)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "client.toml"


@given(places=st.sets(st.sampled_from(["flag", "own variable", "shared variable", "file"])))
def test_the_first_place_that_has_a_setting_wins(places: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("settings") / "client.toml"
    file.write_text('name = "file"' if "file" in places else "")
    environ = {"RUNNEL_CLIENT_NAME": "own"} if "own variable" in places else {}
    if "shared variable" in places:
        environ["RUNNEL_NAME"] = "shared"
    settings = load(flags={"name": "flag" if "flag" in places else None}, environ=environ, file=file)
    order = {"flag": "flag", "own variable": "own", "shared variable": "shared", "file": "file"}
    assert settings.name == next((value for place, value in order.items() if place in places), "site")


def test_flags_that_were_not_given_do_not_count(toml: Path) -> None:
    toml.write_text('data = { default = "/srv/data" }\ninsecure = true')
    settings = load(flags={"data": [], "insecure": None}, file=toml)
    assert settings.data == {"default": Path("/srv/data")}
    assert settings.insecure


def test_an_empty_variable_counts_as_not_given() -> None:
    assert load(environ={"RUNNEL_CLIENT_NAME": "", "RUNNEL_CLIENT_NONSENSE": ""}).name == "site"


@pytest.mark.parametrize("text", ["default=/a,other=/b", '{"default": "/a", "other": "/b"}', " default=/a , other=/b "])
def test_a_mapping_in_a_variable(text: str) -> None:
    assert load(environ={"RUNNEL_CLIENT_DATA": text}).data == {"default": Path("/a"), "other": Path("/b")}


def test_a_mapping_from_a_repeated_flag() -> None:
    assert load(flags={"data": ["default=/a", "other=/b=c"]}).data == {"default": Path("/a"), "other": Path("/b=c")}


@pytest.mark.parametrize("text", ["HOME,LANG", '["HOME", "LANG"]'])
def test_a_list_in_a_variable(text: str) -> None:
    assert load(environ={"RUNNEL_CLIENT_PASS_VARIABLES": text}).pass_variables == ["HOME", "LANG"]


def test_a_nested_table(toml: Path) -> None:
    toml.write_text("[limits]\ncpu_s = 5")
    assert load(file=toml).limits.cpu_s == 5


@pytest.mark.parametrize(("text", "size"), [("512MiB", 512 << 20), ("2GB", 2_000_000_000), ("1048576", 1 << 20)])
def test_sizes_with_a_unit(text: str, size: int) -> None:
    assert load(environ={"RUNNEL_CLIENT_MAX_MODEL_BYTES": text}).max_model_bytes == size


@pytest.mark.parametrize(
    ("variable", "why"),
    [
        ("RUNNEL_URL", "belongs to the people's commands"),
        ("RUNNEL_COMBINER_LISTEN", "belongs to another component"),
        ("RUNNEL_CLIENT_SERVICE_HOST", "Kubernetes sets it"),
        ("RUNNEL_CLIENT_PORT_7400_TCP_ADDR", "Kubernetes sets it"),
        ("OTHER", "is not ours"),
    ],
)
def test_a_variable_is_left_alone_that(variable: str, why: str) -> None:
    assert load(environ={variable: "x"}) == SiteSettings(), why


# ---- refusals name key, value and place


def test_an_unknown_key_in_the_file(toml: Path) -> None:
    toml.write_text("heartbeet_s = 3")
    assert f"heartbeet_s = 3 (file {toml}) is no setting. Did you mean heartbeat_s?" in refusal(file=toml)


def test_an_unknown_variable() -> None:
    message = refusal(environ={"RUNNEL_CLIENT_NAEM": "a"})
    assert "RUNNEL_CLIENT_NAEM = 'a' (environment variable RUNNEL_CLIENT_NAEM) is no setting" in message
    assert "Did you mean RUNNEL_CLIENT_NAME?" in message


def test_an_unknown_key_like_no_other_lists_those_that_exist(toml: Path) -> None:
    toml.write_text("zzz = 3")
    assert "Known are data, first_port, heartbeat_s," in refusal(file=toml)


def test_an_unknown_key_in_a_table(toml: Path) -> None:
    toml.write_text("[limits]\ncpu = 5")
    assert f"limits.cpu = 5 (file {toml})" in refusal(file=toml)


def test_a_bad_value_of_each_place(toml: Path) -> None:
    toml.write_text("heartbeat_s = 0")
    message = refusal(flags={"log_format": "xml"}, environ={"RUNNEL_MAX_MODEL_BYTES": "much"}, file=toml)
    assert "log_format = 'xml' (--log-format) is no good value: input should be 'console' or 'json'." in message
    assert "max_model_bytes = 'much' (environment variable RUNNEL_MAX_MODEL_BYTES)" in message
    assert "such as 512MiB" in message
    assert f"heartbeat_s = 0 (file {toml}) is no good value: input should be greater than 0." in message


def test_a_check_of_our_own_keeps_its_message() -> None:
    assert "name = 'a b' (--name) is no good value: a name has 1 to 64 letters" in refusal(flags={"name": "a b"})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"data": ["default"]},
            "data = ['default'] (--data) is no good value: 'default' is not of the form NAME=VALUE",
        ),
        ({"data": ["a=1", "a=2"]}, "'a' is given twice"),
        ({"data": '{"a": '}, "data = '{\"a\": ' (--data) is no good value: Expecting value"),
        ({"first_port": 10}, "The settings do not fit together: first_port 10 is above last_port 9."),
    ],
)
def test_other_bad_values(given: dict[str, object], problem: str) -> None:
    assert problem in refusal(flags=given)


def test_a_needed_setting_that_nobody_gave() -> None:
    class Needy(BaseModel):
        network: str = Field(description="HOST:PORT of the reducer")

    with pytest.raises(BadSettings, match=r"network is needed \(HOST:PORT of the reducer\): say --network, set the"):
        load_settings(Needy, flags={}, environ={}, prefix="RUNNEL_CLIENT_", file=None)


@pytest.mark.parametrize(
    "flags",
    [
        {"token": ["hush"]},
        {"pin": 1729},
        {"passwords": [1729]},
        {"operator_token": "hush"},
        {"data": {"default": ["postgresql://me:hush@host/x"]}},
        {"tokens": "rnl_" + "hush" * 9},
    ],
)
def test_secrets_are_never_shown(flags: dict[str, object]) -> None:
    message = refusal(flags=flags)
    assert "hush" not in message
    assert "1729" not in message
    assert "***" in message


def test_a_file_that_is_not_there(toml: Path) -> None:
    assert f"The settings file {toml} cannot be read: No such file or directory." in refusal(file=toml)


def test_a_file_that_is_not_toml(toml: Path) -> None:
    toml.write_text("name = ")
    assert f"The settings file {toml} is not TOML: Invalid value (at " in refusal(file=toml)


def test_the_table_for_the_documentation() -> None:
    table = describe_settings(SiteSettings, prefix="RUNNEL_CLIENT_").splitlines()
    assert len(table) == 2 + len(SiteSettings.model_fields)
    assert "| `heartbeat_s` | `RUNNEL_CLIENT_HEARTBEAT_S` | `10` | Seconds between \\| signs of life |" in table
    assert '| `name` | `RUNNEL_CLIENT_NAME` | `"site"` | Name of this node |' in table


def test_a_field_of_its_own_prefix_is_not_read_from_the_shared_one() -> None:
    class Site(BaseModel):
        data: str = Field("none", json_schema_extra={OWN_PREFIX_ONLY: True})

    environ = {"RUNNEL_DATA": "tried.npz"}
    assert load_settings(Site, flags={}, environ=environ, prefix="RUNNEL_CLIENT_", file=None).data == "none"
    environ["RUNNEL_CLIENT_DATA"] = "site.npz"
    assert load_settings(Site, flags={}, environ=environ, prefix="RUNNEL_CLIENT_", file=None).data == "site.npz"


# ---- secrets in files


def test_a_text_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "pin").write_text("  1234\n")
    (tmp_path / "token").write_text("rnl_abc\n")
    settings = load(
        environ={"RUNNEL_CLIENT_PIN_FILE": str(tmp_path / "pin"), "RUNNEL_CLIENT_TOKEN_FILE": str(tmp_path / "token")}
    )
    assert settings.pin is not None
    assert (settings.pin.get_secret_value(), settings.token) == ("1234", "rnl_abc")


def test_a_flag_wins_over_such_a_file_and_the_file_over_the_shared_variable(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file")
    environ = {"RUNNEL_CLIENT_TOKEN_FILE": str(tmp_path / "token"), "RUNNEL_TOKEN": "shared"}
    assert load(environ=environ).token == "from-file"
    assert load(environ=environ, flags={"token": "from-flag"}).token == "from-flag"


def test_what_is_wrong_with_such_a_file_is_said_without_its_content(tmp_path: Path) -> None:
    (tmp_path / "pin").write_text("\n")
    assert f"{tmp_path / 'pin'} (environment variable RUNNEL_CLIENT_PIN_FILE) is empty" in refusal(
        environ={"RUNNEL_CLIENT_PIN_FILE": str(tmp_path / "pin")}
    )
    (tmp_path / "pin").write_text("9876")
    both = refusal(environ={"RUNNEL_CLIENT_PIN_FILE": str(tmp_path / "pin"), "RUNNEL_CLIENT_PIN": "5432"})
    assert "Both RUNNEL_CLIENT_PIN and RUNNEL_CLIENT_PIN_FILE are set" in both
    assert "9876" not in both
    assert "5432" not in both
    assert "cannot be read: No such file" in refusal(environ={"RUNNEL_CLIENT_PIN_FILE": str(tmp_path / "none")})


def test_only_texts_lie_in_files(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("5")
    told = refusal(environ={"RUNNEL_CLIENT_HEARTBEAT_S_FILE": str(tmp_path / "number")})
    assert "RUNNEL_CLIENT_HEARTBEAT_S_FILE" in told
    assert "is no setting" in told
