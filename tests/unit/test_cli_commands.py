"""The command line without a network: what it refuses, how it tells, and its local commands."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from runnel.cli.main import ENTRIES, main

pytestmark = pytest.mark.unit

PEOPLE = [
    ("session", "start list show watch stop resume extend logs"),
    ("package", "init build check show push list"),
    ("model", "list show get convert"),
    ("node", "list"),
    ("token", "create list revoke"),
]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, entry in ENTRIES.items():
        assert f"  {name} " in text
        assert entry.help in text


@pytest.mark.parametrize(("group", "commands"), PEOPLE)
def test_groups_and_their_commands_have_help(group: str, commands: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([group, "--help"]) == 0
    listed = capsys.readouterr().out
    for name in commands.split():
        assert f"  {name} " in listed
        assert main([group, name, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["sesion"], "Did you mean 'session'"),
        (["session", "start"], "Missing option '--package'"),
        (["session", "show"], "Missing argument"),
        (["model", "list", "--colour"], "No such option"),
    ],
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


def test_an_error_is_one_line_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "ftp://nowhere"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: The address of the network has to be http://HOST:PORT")
    assert "RUNNEL_URL" in captured.err


def test_an_error_is_one_document_with_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["package", "build", str(tmp_path / "missing"), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["error"]["code"] == "not_found"


def test_what_nobody_expected_is_one_line_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(folder: Path) -> None:
        raise ZeroDivisionError(str(folder))

    monkeypatch.setattr("runnel.compute_package.write_template", explode)
    assert main(["package", "init", str(tmp_path / "p")], {}) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["package", "init", str(tmp_path / "p")], {"RUNNEL_DEBUG": "1"})


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"]
    assert main(["version"]) == 0
    shown = capsys.readouterr().out
    assert main(["--version"]) == 0
    line = capsys.readouterr().out
    assert re.fullmatch(r"runnel \d\S+\n", line)
    assert shown.startswith(f"{line.strip()} (Python ")
    assert main(["--help"]) == 0
    assert "  --version " in capsys.readouterr().out


def test_init_build_and_show_a_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, archive = tmp_path / "mine", tmp_path / "mine.tar.gz"
    assert main(["package", "init", str(folder)]) == 0
    assert "train.py" in capsys.readouterr().out
    assert main(["package", "init", str(folder)]) == 1
    capsys.readouterr()
    assert main(["package", "build", str(folder), "-o", str(archive), "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert archive.stat().st_size == built["size_bytes"]
    assert main(["package", "show", str(archive), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["digest"] == built["digest"]
    assert "train" in shown["entry_points"]
    assert main(["package", "show", str(folder)]) == 0
    assert built["digest"] in capsys.readouterr().out.replace("\n", "")


def test_build_writes_to_the_parent_folder_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    assert main(["package", "init", str(folder)]) == 0
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert main(["package", "build", ".", "--json"]) == 0
    assert Path(json.loads(capsys.readouterr().out)["path"]).parent.resolve() == tmp_path.resolve()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--strategy-option", "tau", "NAME=NUMBER"),
        ("--strategy-option", "tau=much", "NAME=NUMBER"),
        ("--client-settings", "{", "no JSON"),
        ("--client-settings", "[1]", "no object"),
        ("--package", "no/such.tar.gz", "there is no file"),
    ],
)
def test_a_bad_option_of_start_is_told_before_anything_is_sent(
    option: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["session", "start", "--package", "abcd", "--seed", "mod-1", "--rounds", "1", option, value]
    assert main([*arguments, "--url", "http://127.0.0.1:9"]) == 1
    assert says in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "runnel.cli.status_command", None)
    assert main(["status"]) == 2
    assert "pip install 'runnel[people]'" in capsys.readouterr().err


def test_a_script_that_fails_on_trial_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, output = tmp_path / "mean.py", tmp_path / "tried"
    script.write_text("raise ValueError('no rows')\n")
    assert main(["task", "try", str(script), "--output", str(output)]) == 1
    told = capsys.readouterr()
    assert told.err.splitlines()[-2:] == ["ValueError: no rows", "mean.py ended with the status 1."]
    assert told.err.startswith("Traceback")
    assert "ValueError: no rows" in (output / "stderr").read_text()
