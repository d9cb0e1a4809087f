"""A site's audit log with real processes: killed within a record, and two at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runnel.client.audit import AuditLog

pytestmark = pytest.mark.process

KILLED = """
import sys
from pathlib import Path
from runnel.client.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
while True:
    log.append("run.started", {"much": "x" * (64 << 20)})
"""


def test_kill_9_in_the_middle_of_a_line_is_healed_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.append("policy.set", {})
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(path)]) as process:
            size = path.stat().st_size
            while path.stat().st_size == size and process.poll() is None:
                pass
            process.send_signal(signal.SIGKILL)
        with path.open("rb") as file:
            file.seek(-1, 2)
            if file.read() != b"\n":
                break
    else:
        pytest.fail("no kill came in the middle of a line")
    log.append("policy.set", {})
    kinds = [each.kind for each in log.records()]
    assert kinds[-2:] == ["log.healed", "policy.set"]


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    code = KILLED.replace("while True:", "for each in range(40):").replace(
        '{"much": "x" * (64 << 20)}', '{"each": each}'
    )
    path = tmp_path / "audit.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(list(AuditLog(path).records())) == 80
