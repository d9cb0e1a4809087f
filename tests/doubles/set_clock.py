"""The ``runnel`` command on a machine whose wall clock is set while it runs: ``set_clock.py FILE ARGUMENT…``.

FILE says by how many seconds the clock is off; written anew, the clock jumps, and FILE with ``.set`` appended says when
it has. Only what Python reads as the time of day is changed, in the process itself: like on a real machine monotonic
clocks, sleeps and time-outs are not.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import grpc
import grpc.aio._utils
import time_machine

_LOOK_AGAIN_S = 0.02


def main(clock: Path, arguments: list[str]) -> int:
    """Run the command."""
    text = clock.read_text()
    offset = float(text)
    was_set = clock.with_name(clock.name + ".set")
    was_set.write_text(text)
    traveller = time_machine.travel(time.time() + offset).start()

    def follow() -> None:
        nonlocal offset
        while True:
            time.sleep(_LOOK_AGAIN_S)
            text = clock.read_text()
            wanted = float(text)
            if wanted != offset:
                traveller.shift(wanted - offset)
                offset = wanted
                was_set.write_text(text)

    threading.Thread(target=follow, daemon=True).start()
    # gRPC gives a call's deadline as a time of day to its core, which reads the clock of this machine.
    grpc.aio._utils.time = time_machine.escape_hatch.time  # type: ignore[assignment, attr-defined]
    # What it imports must find the changed clock.
    from runnel.cli.main import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
