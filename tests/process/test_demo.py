"""The demonstration as people run it: real processes, and nothing of them afterwards."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
from rich.console import Console

from runnel.demo.commands import start_script
from runnel.demo.example import locate_example, require_installed
from runnel.demo.outcome import Outcome
from runnel.demo.picture import bar, picture
from runnel.demo.scene import Scene
from runnel.sdk import Network
from runnel.sdk.values import Event, read
from tests.eventually import eventually_blocking
from tests.needs import needs
from tests.process.living import living

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

RUNNEL = [sys.executable, "-m", "runnel.cli"]
ENDS_WITHIN_S = 60.0  # of a busy machine; what it was in the midst of has 490 rounds to go
# A demonstration of an example that is not that of this installation, which the command has no option for.
WITH_EXAMPLE = """
import asyncio, os, sys
from pathlib import Path
from rich.console import Console
from runnel.common.lifetime import main_process
from runnel.demo import DemoOptions, make_screen, run_demo

options = DemoOptions(rounds=1, clients=2, combiners=1, example=Path(sys.argv[1]))
screen = make_screen(Console(stderr=True, width=200))
sys.exit(main_process(lambda: run_demo(options, screen, stop=asyncio.Event(), environ=os.environ)))
"""


class Place:
    """Where a demonstration runs: ``cwd`` is a person's folder, ``tmp`` the machine's folder for what is temporary."""

    def __init__(self, folder: Path) -> None:
        self.cwd, self.tmp = folder / "home", folder / "tmp"
        self.cwd.mkdir()
        self.tmp.mkdir()
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("RUNNEL_")}
        # What a person has set for a network of their own must not matter.
        self.environ |= {"TMPDIR": str(self.tmp), "RUNNEL_CLIENT_PARALLEL": "nonsense", "RUNNEL_TOKEN": "rnl_other"}

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, cwd=self.cwd, env=self.environ, capture_output=True, text=True, timeout=120, check=False
        )

    def alive(self) -> list[str]:
        """Return the command lines of the processes that work in one of the two folders."""
        folders = (str(self.cwd), str(self.tmp))
        found = []
        for process in psutil.process_iter(["cwd", "cmdline", "status"]):
            if str(process.info["cwd"]).startswith(folders) and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.info["cmdline"] or []))
        return found


class Running:
    """A demonstration under way whose lines are read as they come."""

    def __init__(self, place: Place, *arguments: str) -> None:
        self.place = place
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [*RUNNEL, "demo", *arguments],
            cwd=place.cwd,
            env=place.environ,
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.STDOUT,
        )

    def until(self, pattern: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if re.search(pattern, line):
                return
        pytest.fail(f"it ended and never said {pattern!r}:\n{''.join(self.said)}")

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals | None = None) -> int:
        """Send the signal to the demonstration itself and return its exit status."""
        assert self.process.stdout is not None
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(ENDS_WITHIN_S)
        self.said.append(self.process.stdout.read())
        return status


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    needs(find_spec("sklearn"), "scikit-learn")
    made = Place(tmp_path)
    yield made
    eventually_blocking(lambda: made.alive() == [], state=made.alive)


@pytest.fixture
def training(place: Place) -> Iterator[Running]:
    """A demonstration in the middle of its training."""
    demo = Running(place, "--rounds", "500", "--clients", "3", "--combiners", "1")
    try:
        demo.until(r"^round +2/500 ")
        yield demo
    finally:
        demo.process.kill()
        demo.process.communicate()


# ---- the whole of it


def test_it_trains_and_answers_with_one_line_of_json(place: Place) -> None:
    done = place.run(*RUNNEL, "demo", "--rounds", "2", "--clients", "3", "--combiners", "2", "--json")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert {name: answer[name] for name in ("rounds", "clients", "combiners", "non_iid", "dir")} == {
        "rounds": 2,
        "clients": 3,
        "combiners": 2,
        "non_iid": False,
        "dir": None,
    }
    for name in ("accuracy", "accuracy_central", "accuracy_alone"):
        assert 0.8 < answer[name] <= 1.0, answer
    assert abs(answer["accuracy"] - answer["accuracy_central"]) < 0.05
    assert len(answer["accuracies"]) == 2
    assert 0 < 2 * answer["seconds_per_round"] < answer["seconds"] < 120
    assert re.fullmatch("[0-9a-f]{64}", answer["package"])
    model = Path(answer["model"])
    assert model == place.cwd / "runnel-demo" / "model.npz"
    with np.load(model) as arrays:
        assert {name: arrays[name].shape for name in arrays.files} == {
            "w1": (64, 32),
            "b1": (32,),
            "w2": (32, 10),
            "b2": (10,),
        }
    progress = done.stderr
    assert sorted(re.findall(r"^(site-\d) attached to combiner-\d$", progress, re.MULTILINE)) == [
        "site-1",
        "site-2",
        "site-3",
    ]
    assert re.findall(r"^round (\d)/2  3 updates  training .* accuracy 0\.\d+$", progress, re.MULTILINE) == ["1", "2"]
    assert "all data in one place" in progress
    assert "\x1b" not in progress
    assert [path.name for path in model.parent.iterdir()] == ["model.npz"]
    assert list(place.tmp.iterdir()) == []


def test_what_is_kept_starts_again_and_trains_on(place: Place) -> None:
    wanted = ["--rounds", "1", "--clients", "1", "--combiners", "0", "--keep", "--dir", "kept", "--json"]
    done = place.run(*RUNNEL, "demo", *wanted)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["dir"] == str(place.cwd / "kept")
    assert "session extend" in done.stderr
    network = subprocess.Popen(["sh", "kept/start"], cwd=place.cwd, env=place.environ, start_new_session=True)
    try:
        with Network(answer["url"]) as served:
            eventually_blocking(lambda: (place.cwd / "kept" / "reducer" / "endpoints.json").exists(), timeout_s=30)
            served.sessions.extend(answer["session"], 1)
            for _ in served.sessions.watch(answer["session"]):
                pass
            ended = served.sessions.show(answer["session"])
            assert (ended.status, len(ended.rounds)) == ("finished", 2), ended.reason
    finally:
        network.terminate()
        network.wait(30)
    eventually_blocking(lambda: place.alive() == [], state=place.alive)

    again = place.run(*RUNNEL, "demo", *wanted)
    assert again.returncode == 1
    assert again.stdout == ""
    (problem,) = [json.loads(line)["error"] for line in again.stderr.splitlines() if line.startswith("{")]
    assert problem["code"] == "conflict"
    assert "--dir" in problem["hint"]


# ---- its end, in whichever way


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything(training: Running, number: signal.Signals) -> None:
    family = training.family()
    assert len(family) > 5
    assert training.end(number) == 130
    eventually_blocking(lambda: not living(family), state=lambda: living(family))
    assert list(training.place.tmp.iterdir()) == []
    assert not (training.place.cwd / "runnel-demo").exists()
    assert "Traceback" not in "".join(training.said)


def test_a_killed_demo_takes_its_processes_along(training: Running) -> None:
    family = training.family()
    assert len(family) > 5
    training.end(signal.SIGKILL)
    eventually_blocking(lambda: not living(family) and training.place.alive() == [], state=training.place.alive)


def test_a_component_that_dies_is_named_with_its_last_lines(training: Running) -> None:
    family = training.family()
    (combiner,) = [each for each in family if each.cmdline()[-2:] == ["combiner-1", "--insecure"]]
    combiner.kill()
    assert training.end() == 1
    said = "".join(training.said)
    assert "error: combiner-1 was killed by SIGKILL" in said
    assert re.search(r"The last lines of combiner-1:\n( .*\n)* .*event=ready", said), said
    eventually_blocking(lambda: not living(family), state=lambda: living(family))
    assert list(training.place.tmp.iterdir()) == []


# ---- an example that is broken


def broken(place: Place, script: str, text: str | None) -> subprocess.CompletedProcess[str]:
    example = place.cwd / "example"
    shutil.copytree(locate_example(), example, ignore=shutil.ignore_patterns("__pycache__"))
    if text is None:
        (example / script).unlink()
    else:
        (example / script).write_text(text)
    done = place.run(sys.executable, "-c", WITH_EXAMPLE, str(example))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr.replace("  Traceback", "")  # that of a script is shown, indented
    assert list(place.tmp.iterdir()) == []
    return done


def test_training_that_fails_is_told_by_client(place: Place) -> None:
    done = broken(place, "train.py", "raise SystemExit('no scanner here')")
    assert re.search(r"^site-1 failed to train in round 1: .*exit status 1", done.stderr, re.MULTILINE), done.stderr
    assert "no scanner here" in done.stderr
    assert re.search(r"^runnel: The session failed: site-\d failed to train in round 1", done.stderr, re.MULTILINE), (
        done.stderr
    )


def test_data_that_cannot_be_made_end_it(place: Place) -> None:
    done = broken(place, "data.py", "print('reading'); raise OSError('no digits')")
    assert "OSError: no digits" in done.stderr
    assert re.search(r"^runnel: data ended with exit status 1", done.stderr, re.MULTILINE), done.stderr


def test_a_package_without_training_is_refused(place: Place) -> None:
    done = broken(place, "train.py", None)
    assert "train.py" in done.stderr.splitlines()[-1]


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runnel.demo.example.find_spec", lambda name: None if name == "sklearn" else object())
    with pytest.raises(
        Exception, match=r"scikit-learn, which is not installed here. Say: pip install 'runnel\[demo\]'"
    ):
        require_installed()


def test_a_folder_that_cannot_be_used_is_told_before_anything_starts(place: Place) -> None:
    (place.cwd / "file").touch()
    done = place.run(*RUNNEL, "demo", "--dir", "file/below")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "file/below can't be used: Not a directory" in " ".join(done.stderr.split())


# ---- what is seen


def event(kind: str, **data: object) -> Event:
    return read(Event, {"kind": kind, "session": "ses-1", "data": data})


def scene(*, clients: int, combiners: int, rounds: int, committed: int) -> Scene:
    made = Scene(rounds=rounds, act="Training " + "and so on " * 10)
    names = [f"combiner-{number}" for number in range(1, combiners + 1)]
    for name in names:
        made.take(event("node.attached", name=name, node_kind="combiner", to="reducer"))
    for number in range(clients):
        to = names[number % combiners] if combiners else "reducer"
        made.take(event("node.attached", name=f"site-{number + 1}", node_kind="client", to=to))
    for number in range(1, committed + 1):
        made.take(event("session.phase", phase="training", round=number))
        document = {
            "round": number,
            "seconds": 1.0,
            "updates": clients,
            "phases": {"training": 0.5, "reducing": 0.1},
            "metrics": {"accuracy": 1 - 1 / (number + 1)},
        }
        made.take(event("round.committed", **document))
    if committed < rounds:
        made.take(event("session.phase", phase="training", round=committed + 1))
        made.take(event("progress", round=committed + 1, work="train", stages={"site-1": "running"}))
    return made


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("committed", [0, 1, 5, 200])
@pytest.mark.parametrize(("clients", "combiners"), [(1, 0), (6, 2), (100, 3)])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_the_picture_fits_the_terminal(
    width: int, height: int, clients: int, combiners: int, committed: int, ascii_only: bool
) -> None:
    shown = scene(clients=clients, combiners=combiners, rounds=max(10, committed), committed=committed)
    # Wider than the terminal, so that a line that is too long shows.
    console = Console(file=(file := io.StringIO()), width=500, legacy_windows=False)
    console.print(picture(shown, seconds=12.3, width=width, height=height, ascii_only=ascii_only))
    lines = file.getvalue().splitlines()
    assert len(lines) <= height, file.getvalue()
    assert max(len(line.rstrip()) for line in lines) <= width, file.getvalue()
    text = file.getvalue()
    assert ("site-1 " in text) == (clients < 100)
    if clients == 100 and committed < 200:
        assert ("1 training" in text) == (width == 120)  # cut off where there is no room
    if 0 < committed < 200:
        assert f"{committed} of 10 rounds" in text
        assert f"{1 - 1 / (committed + 1):.1%}" in text


def test_a_client_that_moves_hangs_where_it_went() -> None:
    shown = scene(clients=4, combiners=2, rounds=1, committed=0)
    assert shown.below("combiner-1") == ["site-1", "site-3"]
    said = shown.take(event("node.attached", name="site-1", node_kind="client", to="combiner-2"))
    assert said == "site-1 attached to combiner-2"
    assert shown.take(event("node.left", name="site-3")) == "site-3 has left"
    assert (shown.below("combiner-1"), shown.below("combiner-2")) == ([], ["site-1", "site-2", "site-4"])


def test_bars_are_as_long_as_what_they_show() -> None:
    assert [bar(share, 4, ascii_only=False) for share in (0.0, 0.5, 0.53125, 1.0, 2.0)] == [
        "",
        "██",
        "██▏",
        "████",
        "████",
    ]
    assert bar(1 / 2, 4, ascii_only=True) == "##"


def outcome(folder: Path | None) -> Outcome:
    return Outcome(
        rounds=2,
        clients=3,
        combiners=1,
        non_iid=True,
        accuracy=0.5,
        accuracy_central=0.75,
        accuracy_alone=0.25,
        accuracies=(0.4, 0.5),
        test_digits=8,
        model=Path("runnel-demo/model.npz"),
        model_id="mod-1",
        package="0" * 64,
        session="ses-1234567890",
        url="http://127.0.0.1:40000",
        seconds=4.0,
        seconds_per_round=1.0,
        folder=folder,
    )


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("folder", [None, Path("runnel-demo")])
def test_the_end_has_commands_that_can_be_copied(width: int, folder: Path | None) -> None:
    runnel = "some/long/path/to/an/environment/bin/runnel"
    console = Console(file=(file := io.StringIO()), width=width)
    console.print(outcome(folder).closing(runnel=runnel, width=width, ascii_only=False), soft_wrap=True)
    text = file.getvalue()
    assert re.search(r"3 sites together +50.0%", text)
    wanted = [f"{runnel} demo --keep"] if folder is None else [f"{runnel} session extend ses-1234567890 --rounds 5"]
    assert [line.split("  #")[0].strip() for line in text.splitlines() if wanted[0] in line] == wanted
    assert all(line == line.rstrip() for line in text.splitlines())


def test_the_script_quotes_what_it_is_given() -> None:
    text = start_script({"reducer": ["reducer", "--state", "a folder; exit"]})
    assert "runnel reducer --state 'a folder; exit' 2>>logs/reducer.log &" in text
