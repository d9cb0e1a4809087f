from __future__ import annotations

import io
import json
import logging
import re

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from runnel.common.errors import BadSettings
from runnel.common.logs import is_secret_name, mask, setup_logs

pytestmark = pytest.mark.unit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def one_line(stream: io.StringIO) -> str:
    (line,) = stream.getvalue().splitlines()
    return line


def test_json() -> None:
    setup_logs("info", "json", stream := io.StringIO())
    structlog.get_logger().info("client attached", client="a", count=3, rate=0.5, ok=True)
    record = json.loads(one_line(stream))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", record.pop("timestamp"))
    assert record == {
        "event": "client attached", "level": "info", "client": "a", "count": 3, "rate": 0.5, "ok": True,
    }  # fmt: skip


def test_plain_lines_where_there_is_no_terminal() -> None:
    setup_logs(stream=(stream := io.StringIO()))
    structlog.get_logger().info("client attached", client="a", ok=True)
    assert re.fullmatch(r'timestamp=\S+Z level=info event="client attached" client=a ok=true', one_line(stream))


def test_colours_in_a_terminal() -> None:
    setup_logs(stream=(stream := Terminal()))
    structlog.get_logger().info("client attached", client="a")
    assert "\x1b[" in one_line(stream)


def test_records_of_other_libraries_go_the_same_way() -> None:
    setup_logs("info", "json", stream := io.StringIO())
    logging.getLogger("grpc").warning("lost %s", "it")
    logging.getLogger("sqlalchemy.engine").info("SELECT 1")
    record = json.loads(one_line(stream))
    assert (record["event"], record["level"], record["logger"]) == ("lost it", "warning", "grpc")


@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(level: str, heard: int) -> None:
    setup_logs(level, "json", stream := io.StringIO())
    log = structlog.get_logger()
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("e")
    assert len(stream.getvalue().splitlines()) == heard


def test_a_second_set_up_replaces_the_first() -> None:
    log = structlog.get_logger()
    setup_logs("info", "json", first := io.StringIO())
    log.info("one")
    setup_logs("info", "json", second := io.StringIO())
    log.info("two")
    assert json.loads(one_line(first))["event"] == "one"
    assert json.loads(one_line(second))["event"] == "two"


def test_a_traceback_is_one_record_and_keeps_no_secret() -> None:
    setup_logs("info", "json", stream := io.StringIO())
    try:
        raise ValueError("no route to https://me:hush@host")
    except ValueError:
        structlog.get_logger().exception("lost")
    record = json.loads(one_line(stream))
    assert "ValueError: no route to https://***@host" in record["exception"]
    assert "hush" not in stream.getvalue()


@pytest.mark.parametrize("format", ["console", "json"])
def test_bound_and_nested_secrets_are_masked(format: str) -> None:
    setup_logs("info", format, stream := io.StringIO())
    structlog.get_logger().bind(token="hush1").info(
        "joined", header={"Authorization": "hush2"}, text="Bearer hush3", urls=["http://a:hush4@b"], db_password="hush5"
    )
    assert "hush" not in stream.getvalue()
    assert stream.getvalue().count("***") == 5


ANY_TEXT = st.text(st.characters(exclude_categories=())).filter(lambda text: mask(text) == text)


@given(text=ANY_TEXT)
@example(text="\ud800")
def test_no_text_makes_two_lines_or_steers_the_terminal(text: str) -> None:
    setup_logs(stream=(stream := io.StringIO()))
    structlog.get_logger().info("said", text=text, other=[text])
    assert len(stream.getvalue().splitlines()) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", stream.getvalue())
    assert stream.getvalue().encode()


@given(text=ANY_TEXT)
def test_json_keeps_every_text_in_one_line(text: str) -> None:
    setup_logs("info", "json", stream := io.StringIO())
    structlog.get_logger().info("said", text=text, other=[text])
    record = json.loads(one_line(stream))
    assert (record["text"], record["other"]) == (text, [text])


def test_no_text_steers_a_real_terminal() -> None:
    setup_logs(stream=(stream := Terminal()))
    structlog.get_logger().info("said", text="\x1b[2J\nlevel=error", lines=["\x1b[2J"])
    assert "\x1b[2J" not in one_line(stream)
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        structlog.get_logger().exception("lost")
    assert "\\x1b[2J" in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("token", True), ("operator_token", True), ("Authorization", True), ("db-password", True), ("privateKey", True),
        ("credential", True), ("API_KEY", True),
        ("token_id", False), ("key", False), ("tokens_left", False), ("secretary", False), ("client", False),
    ],
)  # fmt: skip
def test_secret_names(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


def test_masking_leaves_the_rest_and_the_original() -> None:
    value = {"url": "http://host:80/x@y", "token": "", "n": (1, "rnl_" + "a" * 52)}
    assert mask(value) == {"url": "http://host:80/x@y", "token": "", "n": (1, "***")}
    assert value["n"] == (1, "rnl_" + "a" * 52)


@pytest.mark.parametrize(("level", "format"), [("loud", "json"), ("info", "xml")])
def test_unknown_level_or_format(level: str, format: str) -> None:
    with pytest.raises(BadSettings, match=r"is one of .*; '(loud|xml)' is not"):
        setup_logs(level, format)
