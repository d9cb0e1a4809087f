"""A process that may not open enough files takes fewer nodes, and says so with both numbers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]

SCRIPT = """
import json, resource, sys
from runnel.common.descriptors import room_for_nodes
from runnel.common.errors import BadSettings
from runnel.common.logs import setup_logs

setup_logs("info", "json")
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    room = room_for_nodes(wanted)
except BadSettings as error:
    room = str(error)
print(json.dumps([room, *resource.getrlimit(resource.RLIMIT_NOFILE)]))
"""


def room(*limits_and_wanted: int) -> tuple[list[object], list[dict[str, object]]]:
    command = [sys.executable, "-c", SCRIPT, *map(str, limits_and_wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), [json.loads(line) for line in done.stderr.splitlines()]


def test_the_soft_limit_is_raised_as_far_as_the_capacity_needs() -> None:
    answer, logs = room(256, 4096, 1000)
    assert answer == [1000, 2512, 4096]
    (raised,) = logs
    assert (raised["event"], raised["before"], raised["now"]) == ("descriptor limit raised", 256, 2512)


def test_what_is_enough_is_left_alone() -> None:
    assert room(3000, 4096, 1000) == ([1000, 3000, 4096], [])


def test_the_capacity_is_lowered_to_what_the_hard_limit_allows() -> None:
    answer, logs = room(256, 1512, 1000)
    assert answer == [500, 1512, 1512]
    lowered = logs[-1]
    assert lowered["level"] == "warning"
    assert [lowered[name] for name in ("capacity", "wanted", "descriptors", "needed")] == [500, 1000, 1512, 2512]


def test_a_process_that_can_serve_nobody_does_not_start() -> None:
    answer, _ = room(200, 200, 1000)
    assert "may open 200 files" in str(answer[0])
