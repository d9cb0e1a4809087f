"""A package's server functions: one process for each step, behind walls, and what becomes of their answers."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import numpy as np
import psutil
import pytest

from runnel.common.errors import ServerFunctionFailed
from runnel.common.tensors import open_npz
from tests.doubles.server_packages import MEDIAN, Bench
from tests.eventually import eventually, let_pass
from tests.process.living import living

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]

BASE: dict[str, np.ndarray[Any, Any]] = {"w": np.zeros((2, 3), np.float32), "n": np.array([4], np.int64)}
NAMES = ("a", "b", "c")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def selecting(body: str) -> str:
    """Return a ``server.py`` whose ``client_selection(self, names)`` does this."""
    return "class ServerFunctions:\n    def client_selection(self, names):\n" + indent(dedent(body), " " * 8)


async def select(bench: Bench, server: str, state: str | None = None) -> tuple[tuple[str, ...] | None, str | None]:
    begun = await bench.functions.begin(
        bench.asked(server), clients=NAMES, least=1, model=bench.model(BASE), state=state
    )
    return begun.clients, begun.state


async def aggregate(bench: Bench, server: str) -> dict[str, np.ndarray[Any, Any]]:
    updates = [
        bench.update(name, {"w": np.full((2, 3), step, np.float32), "n": np.array([step], np.int64)}, num_examples=step)
        for name, step in (("a", 1), ("b", 2), ("c", 9))
    ]
    out = bench.folder / "out.npz"
    model = bench.model(BASE)
    await bench.functions.aggregate(bench.asked(server), updates=updates, model=model, model_out=out, state=None)
    with open_npz(out, source="test") as made:
        return made.arrays()


async def test_the_model_that_is_returned_is_cast_to_that_of_the_session(bench: Bench) -> None:
    arrays = await aggregate(bench, MEDIAN)
    assert {name: array.dtype.name for name, array in arrays.items()} == {"w": "float32", "n": "int64"}
    np.testing.assert_array_equal(arrays["w"], np.full((2, 3), 2, np.float32))
    assert arrays["n"] == 2
    assert list(bench.places.iterdir()) == []


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("previous_global[:1]", "aggregate should return a list of 2 arrays and returned 1"),
        ("None", "aggregate should return a list of 2 arrays and returned a NoneType"),
        ("[previous_global[0].T, previous_global[1]]", r"returned 'w' with the shape \(3, 2\), expected was \(2, 3\)"),
        ("[previous_global[0] / 0, previous_global[1]]", "no model that can be used: 'w' has NaN or infinity"),
        ("[previous_global[0] + 1e39, previous_global[1]]", "no model that can be used"),
        ("[previous_global[0].astype(object), previous_global[1]]", "'w' with the dtype object, expected was float32"),
    ],
)
async def test_what_is_no_model_of_the_session_is_refused(bench: Bench, returned: str, says: str) -> None:
    server = f"class ServerFunctions:\n    def aggregate(self, previous_global, updates):\n        return {returned}\n"
    with pytest.raises(ServerFunctionFailed, match=says):
        await aggregate(bench, server)
    assert not (bench.folder / "out.npz").exists()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return names[0]", "should return a list of names and returned a"),
        ("return ['z']", "returned 'z', which is none of the 3 clients"),
        ("return ['a', 'a']", "returned a client twice"),
        ("return []", "returned 0 of 3 clients; the session wants at least 1"),
        ("return {1j}", "what it returned can not be written as JSON"),
        ("raise SystemExit(3)", "client_selection ended with SystemExit"),
        ("import os\nos._exit(3)", "ended with exit status 3 within their walls and without an answer"),
        ("import ctypes\nctypes.string_at(0)", "were killed by SIGSEGV"),
        ("return [bytearray(1 << 31)]", "1,073,741,824 bytes of memory that it may have were not enough"),
        ("self.file = open('/dev/null')\nreturn names", r"self\.file is or holds a _io\.TextIOWrapper, which does not"),
    ],
)
async def test_what_goes_wrong_is_told(bench: Bench, body: str, says: str) -> None:
    with pytest.raises(ServerFunctionFailed, match=says):
        await select(bench, selecting(body))


async def test_a_hang_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    bench, before = Bench(tmp_path), set(psutil.Process().children(recursive=True))
    step = asyncio.create_task(select(bench, selecting("print('it begins')\nwhile True:\n    pass")))
    await eventually(lambda: bench.said)
    let_pass(30.0)
    with pytest.raises(ServerFunctionFailed, match="took more than 30 s and were ended") as caught:
        await step
    assert caught.value.fields["log_tail"] == "it begins"
    assert bench.said == ["it begins"]
    assert list(bench.places.iterdir()) == []
    left = [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or ())]
    assert left == []
    assert set(psutil.Process().children(recursive=True)) <= before


async def test_a_step_ends_with_the_process_that_wanted_it(bench: Bench) -> None:
    # What asks is a process of its own, which is killed while the package is at work.
    asked = bench.asked(selecting("print('at work')\nwhile True:\n    pass"))
    at_work = bench.folder / "at work"
    asked = dataclasses.replace(asked, say=lambda stream, line: at_work.touch())
    model = bench.model(BASE)
    child = os.fork()
    if child == 0:
        _ask_for_ever(bench, asked, model)
    try:
        await eventually(at_work.exists)
        steps = psutil.Process(child).children(recursive=True)
        assert len(steps) == 2  # the one that waits, and the one within the walls
    finally:
        _kill(child)
    await eventually(lambda: not living(steps), state=lambda: living(steps))


ESCAPES = {
    "import socket\nsocket.create_connection(('127.0.0.1', 22))": "Network is unreachable",
    "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))": "unreachable",
    "open('/package/train.py', 'a')": "Read-only file system|Permission denied",
    "open('/in/model', 'r+b')": "Read-only file system|Permission denied|No such file",
    "open('/etc/passwd')": "No such file or directory",
    "open('SECRET')": "No such file or directory",
    "import os\nos.fork()": "Resource temporarily unavailable",
    "import subprocess\nsubprocess.run(['true'])": "Resource temporarily unavailable|No such file",
    "import os\nos.kill(REDUCER, 0)": "No such process|ProcessLookupError",
    "import os\nos.setuid(0)": "Operation not permitted|Invalid argument",
    "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0, 'no mount'": "no mount",
    "with open('/tmp/much', 'wb') as file:\n    file.write(bytes(99 << 20))": "No space left on device|File too large",
    "with open('/state', 'wb') as file:\n    file.write(bytes(99 << 20))": "File too large",
}


async def test_nothing_is_reached_from_within_the_walls(bench: Bench) -> None:
    secret = bench.folder / "operator.token"
    secret.write_text("secret")
    secret.chmod(0o644)
    tried = "\n".join(
        f"try:\n{indent(body, '    ')}\n    names += ['{number}']\nexcept Exception as error:\n    print(repr(error))"
        for number, body in enumerate(ESCAPES)
    )
    tried = tried.replace("SECRET", str(secret)).replace("REDUCER", str(os.getpid()))
    clients, _ = await select(bench, selecting(f"{tried}\nreturn names"))
    assert clients == NAMES
    assert len(bench.said) == len(ESCAPES)
    for line, wanted in zip(bench.said, ESCAPES.values(), strict=True):
        assert re.search(wanted, line), line
    assert (bench.places.parent / "operator.token").read_text() == "secret"


REMEMBERS = """
    import random
    import numpy as np

    class ServerFunctions:
        def __init__(self):
            self.all = {"n": 0, 7: (1.5, None, True, b"x"), "s": {1, 2}, "f": frozenset("a"), "l": [[]], "é": "ü"}
            self.array, self.number = np.arange(3, dtype=np.int16), np.float32(0.5)
            self.random, self.generator = random.Random(3), np.random.default_rng(4)
            self.drawn = []

        def client_selection(self, names):
            self.all["n"] += 1
            self.drawn += [self.random.random(), float(self.generator.random())]
            print(*(repr(vars(self)[name]) for name in ("all", "array", "number", "drawn")))
            print({"sets", "of", "texts", "have", "one", "order"})
            print(random.random(), np.random.rand())
            return names
"""


async def test_what_an_instance_remembers_lasts_and_draws_repeat(bench: Bench) -> None:
    _, first = await select(bench, REMEMBERS)
    _, second = await select(bench, REMEMBERS, first)
    _, again = await select(bench, REMEMBERS, first)
    once, twice, repeated = bench.said[0::3]
    assert twice == repeated != once
    assert second == again != first
    assert "'n': 2, 7: (1.5, None, True, b'x')" in twice
    assert "frozenset({'a'})" in twice
    assert "dtype=int16" in twice
    assert [len(set(bench.said[n::3])) for n in (1, 2)] == [1, 1]


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _ask_for_ever(bench: Bench, asked: Any, model: Any) -> None:
    """Ask in a child of the test, which ends here whatever happens."""
    import asyncio

    try:
        asyncio.set_event_loop(None)
        new = asyncio.new_event_loop()
        asyncio.events._set_running_loop(None)
        new.run_until_complete(bench.functions.begin(asked, clients=NAMES, least=1, model=model, state=None))
    finally:
        os._exit(1)
