"""``runnel client results``: what people see of results that wait, and that they decide once."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from runnel.cli.main import main
from runnel.client.audit import AUDIT_FILE, AuditLog
from runnel.client.tasks.book import Ended, RunBook
from runnel.client.tasks.contract import Produced
from runnel.client.tasks.release import RUNS, Decisions
from tests.doubles.task_network import order, plain

pytestmark = pytest.mark.unit


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The folder of a client with two runs whose results wait, and one that has none."""
    book = RunBook(tmp_path / RUNS)
    for name in ("run-aa", "run-ab", "run-b"):
        book.take(order(name, plain("org/tool:1")), now_ms=1_700_000_000_000)
        _, work = book.begin(name)
        if name == "run-b":
            continue
        (work / "text").write_text("first\x1b[2J\nsecond\n" + "x" * 5000)
        with zipfile.ZipFile(work / "zip", "w") as archive:
            archive.writestr("sub/table.csv", "a\n1\n")
        files = [
            Produced(name="stdout", media_type="text/plain", path=work / "text"),
            Produced(name="output", media_type="application/zip", path=work / "zip"),
        ]
        book.end(name, Ended(exit_code=0, produced=files, reviewed=True))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(["client", "results", *arguments]) == status
    told = capsys.readouterr()
    return told.err if status else told.out


def test_what_waits_is_listed_and_shown_harmlessly(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = said(capsys, "list", "--state", str(state))
    assert "run-aa" in listed
    assert "run-ab" in listed
    assert "run-b " not in listed
    assert said(capsys, "--state", str(state)) == listed
    document = json.loads(said(capsys, "list", "--state", str(state), "--json"))
    assert [each["run"] for each in document] == ["run-aa", "run-ab"]
    assert [file["name"] for file in document[0]["files"]] == ["stdout", "output"]
    shown = said(capsys, "show", "aa", "--state", str(state), "--output", str(state / "look"))
    assert "first\\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert "sub/table.csv (4 B)" in shown
    assert "org/ada" in shown
    assert (state / "look" / "stdout").read_text().startswith("first")
    # Who looked is in the log; that results wait is no secret of theirs.
    (look,) = AuditLog(state / AUDIT_FILE).records()
    assert (look.kind, look.data["run"], look.data["copied"]) == ("results.shown", "run-aa", True)
    assert look.data["files"] == ["stdout", "output"]
    assert "More than one" in said(capsys, "show", "a", "--state", str(state), status=1)
    assert "No results" in said(capsys, "show", "zz", "--state", str(state), status=1)


@pytest.mark.parametrize("word", ["release", "block"])
def test_a_decision_is_made_once_and_is_in_the_log(state: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    more = ("--state", str(state), "--reason", "looked at it")
    assert "run-aa" in said(capsys, word, "aa", *more)
    decision = Decisions(state / RUNS).of("run-aa")
    assert decision is not None
    assert (decision.release, decision.reason) == (word == "release", "looked at it")
    assert "decided before" in said(capsys, "release", "run-aa", *more, status=1)
    assert "decided before" in said(capsys, "block", "run-aa", *more, status=1)
    assert json.loads(said(capsys, word, "run-ab", *more, "--json"))["release"] is (word == "release")
    assert "No results wait" in said(capsys, "list", "--state", str(state))
    records = [(record.kind, record.data["run"]) for record in AuditLog(state / AUDIT_FILE).records()]
    kind = "results.released" if word == "release" else "results.blocked"
    assert records == [(kind, "run-aa"), (kind, "run-ab")]
