"""What README and docs show is run, and what they list is compared with the code.

A fenced block below ``<!-- run: NAME -->`` is run; the blocks of one name in one file are one story, in their order,
in one folder and with one environment. After a comma there may be:

* ``terminal: WHO``: a terminal of its own; the story goes on when its component is ready;
* ``wait: nodes N`` or ``wait: file PATH``: go on when so many nodes are attached, or when the file is there;
* ``network: N`` (and ``digits``, or a path of data): a reducer, a combiner and N clients are there from here on;
  ``network: N tasks``: these clients take tasks, and run nothing.

In ``console`` blocks what follows a ``$ `` is run and the lines after it have to have the shape of what it writes:
numbers, ids and bars may differ, ``…`` stands for anything. Where R is missing a story ends at its first block of R.
``python -m tests.process.test_docs`` writes the tables of settings anew.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel

from runnel.cli.session_commands import app as session_app
from runnel.client.runtimes import variables
from runnel.common.aggregation import OPTIMIZERS, STRATEGIES
from runnel.common.errors import RunnelError
from runnel.common.settings import describe_settings, load_settings
from runnel.reducer.http import create_app
from runnel.reducer.http.fds import datasets, results, selections, tasks, tokens
from runnel.reducer.http.requests import SessionRequest
from runnel.sdk import Network
from tests.doubles.reducer_service import InMemoryReducer
from tests.eventually import eventually_blocking
from tests.lasting_port import lasting_port
from tests.needs import needs
from tests.process.forked_process import ForkedProcess, start_runnel

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("[!.]*/README.md")), *sorted(ROOT.glob("examples/*/README.md"))]
PAGES = [*READMES, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND_S = 120.0
READY_S = 60.0

BLOCK = re.compile(r"<!-- run: (?P<how>.+?) -->\n```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SETTINGS = re.compile(r"(<!-- settings: (\S+) (\S+) -->\n)(.*?)(<!-- /settings -->)", re.DOTALL)


# ---- stories


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block and what its comment asks for."""

    language: str
    text: str
    story: str
    asked: dict[str, str] = field(default_factory=dict)


def blocks(page: Path) -> Iterator[Block]:
    for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
        story, *asked = (part.strip() for part in found["how"].split(","))
        wishes = dict(each.split(": ", 1) for each in asked)
        yield Block(language=found["language"], text=found["text"], story=story, asked=wishes)


STORIES = sorted({(str(page.relative_to(ROOT)), block.story) for page in PAGES for block in blocks(page)})


class Story:
    """A folder and an environment in which a story is played; a context manager that ends what was started.

    Args:
        folder: a new one; it holds what a checkout does, as far as the stories use it.
    """

    def __init__(self, folder: Path) -> None:
        self._checkout = folder / "runnel"
        shutil.copytree(ROOT / "examples", self._checkout / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        activate = self._checkout / ".venv" / "bin" / "activate"
        activate.parent.mkdir(parents=True)
        activate.write_text(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")
        self._state = folder / "environment"
        ports = (lasting_port(), lasting_port(), lasting_port())  # it takes a while until somebody listens
        self._ports = {port: str(free) for port, free in zip(("7400", "7480", "7500"), ports, strict=True)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNNEL_", "PYTEST_"))}
        kept |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}", "OMP_NUM_THREADS": "1"}
        self._environ = kept | {"OPENBLAS_NUM_THREADS": "1", "RUNNEL_URL": self._here("http://127.0.0.1:7480")}
        self._state.write_text(f"cd {shlex.quote(str(self._checkout))}\n")
        self._terminals: dict[str, subprocess.Popen[bytes]] = {}
        self._network: dict[str, subprocess.Popen[bytes] | ForkedProcess] = {}
        self._logs = folder

    def __enter__(self) -> Story:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The clients first: what they run ends with them.
        for name in reversed(self._terminals):
            terminal = self._terminals[name]
            os.killpg(terminal.pid, signal.SIGTERM)
            try:
                terminal.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(terminal.pid, signal.SIGKILL)
                terminal.wait()
        for process in reversed(self._network.values()):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if exc_info[0] is not None:
            for name in (*self._terminals, *self._network):
                print(f"---- {name}\n{self._log(name)[-3000:]}")

    def play(self, block: Block) -> None:
        if "network" in block.asked:
            self._start_network(*block.asked["network"].split())
        if (waits_for := block.asked.get("wait")) is not None:
            self._wait(*waits_for.split())
        match block.language:
            case "bash" if "terminal" in block.asked:
                self._start(block.asked["terminal"], block.text)
            case "bash":
                self.run(block.text)
            case "console":
                for command, shown in commands(block.text):
                    assert_shape(shown, self.run(command))
            case "python":
                (self._logs / "block.py").write_text(self._here(block.text))
                self.run(f"python {shlex.quote(str(self._logs / 'block.py'))}")
            case "r":
                needs(has_r(), "Rscript with httr2 and jsonlite")
                (self._logs / "block.R").write_text(self._here(block.text))
                self.run(f"Rscript {shlex.quote(str(self._logs / 'block.R'))}")
            case other:
                raise AssertionError(f"how is a block of {other} run?")

    def run(self, command: str) -> str:
        """Run as a shell does and return what it wrote; folder and environment are those of the next command too."""
        shell = f'. "$STORY"\nset -e\n{self._here(command)}\n{{ export -p; printf "cd %q\\n" "$PWD"; }} > "$STORY"\n'
        done = subprocess.run(
            ["bash", "-c", shell],
            env=self._environ | {"STORY": str(self._state)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\nended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def _here(self, text: str) -> str:
        """Give the ports of this run for the documented ones."""
        return re.sub(r"(?<=:)(7400|7480|7500)\b", lambda found: self._ports[found[1]], text)

    def _start(self, name: str, command: str) -> None:
        # A combiner's default port is not written down everywhere.
        environ = self._environ | {"STORY": str(self._state)}
        environ |= {
            "RUNNEL_REDUCER_RPC": self._here("127.0.0.1:7400"),
            "RUNNEL_REDUCER_HTTP": self._here("127.0.0.1:7480"),
            "RUNNEL_COMBINER_LISTEN": self._here("127.0.0.1:7500"),
        }
        if not command.lstrip().startswith("runnel reducer"):
            del environ["RUNNEL_REDUCER_RPC"], environ["RUNNEL_REDUCER_HTTP"]
        with (self._logs / f"{name}.log").open("wb") as log:
            self._terminals[name] = subprocess.Popen(
                ["bash", "-c", f'. "$STORY"\n{self._here(command)}'],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._until_ready(name, self._terminals[name])

    def _until_ready(self, name: str, process: subprocess.Popen[bytes] | ForkedProcess) -> None:
        def ready() -> bool:
            log = self._log(name)
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended:\n{log}")
            return "event=ready" in log

        eventually_blocking(ready, timeout_s=READY_S, state=lambda: f"{name}: {self._log(name)[-2000:]}")

    def _log(self, name: str) -> str:
        return (self._logs / f"{name}.log").read_text(errors="replace")

    def _start_network(self, clients: str, data: str = "") -> None:
        if data == "digits":
            self.run("python examples/digits/data.py sites --clients 1 && python examples/digits/build.py seed.npz")
            self.run("runnel package build examples/digits -o digits.tar.gz")
            data = "sites/site-1.npz"
        given = ["--data", f"default={data}"] if data and data != "tasks" else []
        rpc, http, listen = (f"127.0.0.1:{self._ports[port]}" for port in ("7400", "7480", "7500"))
        self._launch("reducer", "reducer", "--rpc", rpc, "--http", http)
        self._launch("combiner", "combiner", "--network", rpc, "--listen", listen, "--name", "combiner-1")
        sites = [f"site-{number}" for number in range(1, int(clients) + 1)]
        if data == "tasks":
            self._start(
                "sites", f"PYTHONPATH={ROOT} python -m tests.doubles.task_sites 127.0.0.1:7400 {' '.join(sites)}"
            )
        for name in [] if data == "tasks" else sites:
            self._launch(name, "client", "--network", rpc, "--name", name, "--state", name, *given)
        self._wait("nodes", str(int(clients) + 1))

    def _launch(self, name: str, *arguments: str) -> None:
        """Start a component that is not shown, in the folder in which the story is."""
        variables = self._variables()
        environ = {key: value for key, value in variables.items() if not key.endswith("_NUM_THREADS")}
        with (self._logs / f"{name}.log").open("wb") as log:
            self._network[name] = start_runnel(
                [*arguments, "--insecure"], env=environ, stdout=log, stderr=log, cwd=Path(variables["PWD"])
            )
        self._until_ready(name, self._network[name])

    def _variables(self) -> dict[str, str]:
        """Return what the next command of the story would find in its environment."""
        shell = ["bash", "-c", '. "$STORY" && env -0']
        told = subprocess.run(
            shell, env=self._environ | {"STORY": str(self._state)}, capture_output=True, text=True, check=True
        )
        return dict(pair.split("=", 1) for pair in told.stdout.split("\0") if pair)

    def _wait(self, what: str, which: str) -> None:
        if what == "file":
            eventually_blocking(lambda: self.run(f"test -e {which} && echo there || true").strip(), timeout_s=READY_S)
            return
        told = self._variables()
        ca_file = told.get("RUNNEL_CA_FILE")
        with Network(told["RUNNEL_URL"], told.get("RUNNEL_TOKEN"), ca_file and Path(told["PWD"], ca_file)) as network:

            def attached() -> int:
                return sum(node.status == "attached" for node in network.nodes.list())

            eventually_blocking(lambda: attached() == int(which), timeout_s=READY_S, state=attached)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a ``console`` block with the lines shown below each."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        else:
            found[-1][1].append(line)
    return found


_SAME = [
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"\b(ses|mod|tok|tsk|run)-[0-9a-z]{10}\b"), r"\1-ID"),
    (re.compile(r"\b(study|digits|mine) [0-9a-z]{4}\b"), r"\1 ID"),
    (re.compile(r"\b[0-9a-f]{8,64}\b"), "HEX"),
    (re.compile(r"(Linux|Darwin) \S+, Python \S+"), "PLATFORM"),
    (re.compile(r"[█▉▊▋▌▍▎▏]+"), "BAR"),
    (re.compile(r"─+"), "─"),
    (re.compile(r"\d[\d.,:\-]*"), "#"),
    (re.compile(r"loss # accuracy #"), "accuracy # loss #"),  # metrics of a client come in any order
    (re.compile(r"\s+"), " "),
]


def shape_of(line: str) -> str:
    for pattern, same in _SAME:
        line = pattern.sub(same, line)
    return line.strip()


def assert_shape(shown: list[str], written: str) -> None:
    pattern = ""
    for line in shown:
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(shape_of(part)) for part in line.split("…")) + r"\n"
    actual = "".join(f"{shape_of(line)}\n" for line in written.splitlines())
    assert not shown or re.fullmatch(pattern, actual), f"shown:\n{chr(10).join(shown)}\n\nwritten:\n{written}"


def has_r() -> bool:
    """Tell whether R is there with what its blocks load."""
    asked = ["Rscript", "-e", "library(httr2); library(jsonlite)"]
    return bool(shutil.which(asked[0])) and subprocess.run(asked, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(("page", "story"), STORIES)
def test_what_is_shown_works(page: str, story: str, tmp_path: Path) -> None:
    played = [block for block in blocks(ROOT / page) if block.story == story]
    for program in ("openssl", "curl"):
        needs(shutil.which(program) or not any(program in block.text for block in played), program)
    with Story(tmp_path) as stage:
        for block in played:
            stage.play(block)


def test_the_demo_looks_as_shown(tmp_path: Path) -> None:
    (shown,) = re.findall(r"<!-- shape: demo -->\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    with Story(tmp_path) as stage:
        assert_shape([*shown.splitlines(), "…"], stage.run("runnel demo --rounds 3"))


@pytest.mark.parametrize(
    ("shown", "written", "same"),
    [
        ("round 1/10  6 updates  1.00 s", "round 12/20  7 updates  0.5 s", True),
        ("round 1/10  6 updates", "round 1/10  6 updates  1 late", False),
        ("a\n…\nz", "a\nb\nc\nz", True),
        ("a\n…\nz", "a\nb\nc", False),
        ("mod-rrvq06pfqm  seed", "mod-0000000000  seed", True),
        ("mod-rrvq06pfqm  seed", "ses-0000000000  seed", False),
        ("runs with …", "runs with python", True),
        ("a", "a\nb", False),
    ],
)
def test_shapes_are_told_apart(shown: str, written: str, same: bool) -> None:
    if same:
        assert_shape(shown.splitlines(), written)
    else:
        with pytest.raises(AssertionError, match="shown:"):
            assert_shape(shown.splitlines(), written)


# ---- tables


def settings_model(path: str) -> type[BaseModel]:
    module, _, name = path.rpartition(".")
    model: type[BaseModel] = getattr(importlib.import_module(module), name)
    return model


def with_settings(text: str) -> str:
    """Return the page with the tables of settings as they are."""
    return SETTINGS.sub(
        lambda found: found[1] + describe_settings(settings_model(found[2]), prefix=found[3]) + found[5], text
    )


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- settings:" in page.read_text()], ids=lambda p: p.name)
def test_tables_of_settings(page: Path) -> None:
    assert page.read_text() == with_settings(page.read_text()), "python -m tests.process.test_docs writes it anew"


@pytest.mark.parametrize("component", ["reducer", "combiner", "client"])
def test_example_settings_have_every_key_with_its_default(component: str, tmp_path: Path) -> None:
    model = settings_model(f"runnel.{component}.settings.{component.capitalize()}Settings")
    text = (ROOT / component / f"{component}.example.toml").read_text()
    load_settings(model, flags={}, environ={}, prefix="RUNNEL_X_", file=ROOT / component / f"{component}.example.toml")
    everything = tmp_path / "everything.toml"
    # What is commented out is written without a space behind the #; what is prose has one.
    everything.write_text(re.sub(r"^#(?=[a-z_\[])", "", text, flags=re.MULTILINE))
    assert set(tomllib.loads(everything.read_text())) == set(model.model_fields)
    loaded = load_settings(model, flags={}, environ={}, prefix="RUNNEL_X_", file=everything)
    shown = tomllib.loads("".join(line for line in re.findall(r"^#([a-z_]+ = .*\n)", text, re.MULTILINE)))
    defaults = {
        key: info.get_default(call_default_factory=True, validated_data={}) for key, info in model.model_fields.items()
    }
    off = {key for key in shown if defaults[key] not in (None, "", {}, []) and getattr(loaded, key) != defaults[key]}
    assert off == set()


def test_options_of_a_session() -> None:
    text = (ROOT / "docs" / "model-initiator.md").read_text()
    rows = re.findall(r"^\| `(--[a-z-]+)[^`]*` \| `(\w+)` \| (.*?) \|", text, re.MULTILINE)
    documented = {name: default.strip(" `") for _, name, default in rows}
    wanted = {key: info for key, info in SessionRequest.model_fields.items() if key not in ("package", "seed")}
    assert set(documented) == set(wanted)
    import typer

    command = typer.main.get_group(session_app).commands["start"]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {option for option, _, _ in rows} <= options
    for key, info in wanted.items():
        default: Any = info.get_default(call_default_factory=True, validated_data={})
        if default not in (None, "", {}) and not info.is_required():
            assert documented[key] == str(default), key


def test_strategies_and_their_defaults() -> None:
    text = (ROOT / "docs" / "model-initiator.md").read_text()
    rows = dict(re.findall(r"^\| `(fed\w+)` \|.*?\| (`learning_rate`.*?) \|", text, re.MULTILINE))
    documented = {
        name: {option: float(value) for option, value in re.findall(r"`(\w+)`[^=]*= ([\d.]+)", options)}
        for name, options in rows.items()
    }
    assert documented == {
        name: {option.name: option.default for option in fields(rule)} for name, rule in OPTIMIZERS.items()
    }


def test_robust_strategies_and_their_defaults() -> None:
    text = (ROOT / "docs" / "model-initiator.md").read_text().partition("## Robust strategies")[2]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", text, re.MULTILINE)
    robust = {name: kind for name, kind in STRATEGIES.items() if kind.gathers and name != "fedbuff"}
    assert [name for name, _ in rows] == list(robust)
    for name, options in rows:
        documented = {option: float(value) for option, value in re.findall(r"`(\w+)`[^,=]*= ([\d.e-]+)", options)}
        defaults = {option: value for option, value in robust[name].options.items() if value is not None}
        assert documented | {"learning_rate": 1.0} == defaults, name
        assert all(f"`{option}`" in options for option in robust[name].required), name


def test_the_options_of_asynchronous_sessions() -> None:
    text = (ROOT / "docs" / "model-initiator.md").read_text().partition("## Asynchronous sessions")[2]
    rows = re.findall(r"^\| `(\w+)` \| (?:\S+ = )?([\d.]+) \|", text.partition("## Robust")[0], re.MULTILINE)
    assert {name: float(value) for name, value in rows} == STRATEGIES["fedbuff"].options


def test_codes_of_failures() -> None:
    text = (ROOT / "docs" / "model-initiator.md").read_text().partition("| Code |")[2].partition("\n\n")[0]
    codes = {code for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for code in re.findall(r"`(\w+)`", row)}
    assert len(codes) > 5
    assert {code for code in codes if RunnelError.from_wire({"code": code}).code != code} == set()


def test_variables_that_entry_points_see() -> None:
    text = (ROOT / "docs" / "data-provider.md").read_text()
    (row,) = re.findall(r"<!-- variables: passed -->\n.*\n.*\n(.*)", text)
    documented = {*re.findall(r"`([A-Z_]+)`", row), "LC_ALL"}
    assert documented >= variables._PROCESS
    foreign = ("UV_INDEX_URL", "PIP_INDEX_URL", "RUNNEL_CLIENT_TOKEN", "PYTHONPATH", "HTTPS_PROXY", "SHELL", "PWD")
    passed = variables.process_variables(dict.fromkeys((*documented, *foreign), "x"))
    assert set(passed) == documented | {"PYTHONUNBUFFERED"}


def test_routes(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "rest.md").read_text()
    documented = {(verb.lower(), path) for verb, path in re.findall(r"^\| `([A-Z]+) (\S+)` \|", text, re.MULTILINE)}
    paths = create_app(InMemoryReducer(tmp_path), insecure=True).openapi()["paths"]
    assert documented == {(verb, path) for path, verbs in paths.items() for verb in verbs}


def test_routes_of_federated_data_sharing() -> None:
    text = (ROOT / "docs" / "fds.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z]+) (\S+)` \|", text, re.MULTILINE))
    routers = (
        tasks.standard,
        tasks.sharing,
        results.router,
        datasets.router,
        selections.router,
        tokens.router,
        tokens.health,
    )
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    assert documented == {(verb, route.path) for route in routes for verb in route.methods or ()}


# ---- words


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(ROOT) and target.exists()
        if not inside or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_tests_that_are_named_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", "".join(page.read_text() for page in PAGES))
    assert len(named) > 7
    assert [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_knows_a_machine(page: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:work|root|home|tmp)/\S*|\.\./shared\S*", page.read_text()) == []


def write_settings() -> None:
    """Write the tables of settings anew."""
    for page in PAGES:
        if (text := with_settings(page.read_text())) != page.read_text():
            page.write_text(text)


if __name__ == "__main__":
    write_settings()
