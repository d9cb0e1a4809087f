"""The command lines of the demonstration's components, and the script that starts them all again."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runnel.demo.processes import ONE_THREAD

ANY_PORT = "127.0.0.1:0"

_SCRIPT = """\
#!/bin/sh
# Starts the network of the demo again, on what is in this folder; Ctrl-C stops it. Written by `runnel demo --keep`.
cd "$(dirname "$0")" || exit 1
for name in $(env | sed -n 's/^\\(RUNNEL_[A-Z0-9_]*\\)=.*/\\1/p'); do unset "$name"; done
runnel() {{ exec {runnel} "$@"; }}
export {variables}
started=
trap : INT
trap 'kill $started 2>/dev/null' HUP TERM
{commands}
for one in $started; do while kill -0 "$one" 2>/dev/null; do wait "$one"; done; done
"""


def runnel_argv() -> list[str]:
    """Return the beginning of a command line that calls this very installation."""
    return [sys.executable, "-m", "runnel.cli"]


def runnel_shown(cwd: Path) -> str:
    """Return what a person in ``cwd`` types for ``runnel``: the word alone if it is found, else its path."""
    script = Path(sys.executable).with_name("runnel")
    if not script.exists():
        return shlex.join(runnel_argv())
    found = shutil.which("runnel")
    if found is not None and Path(found).resolve() == script.resolve():
        return "runnel"
    return shlex.quote(str(script.relative_to(cwd) if script.is_relative_to(cwd) else script))


def reducer_arguments(*, rpc: str = ANY_PORT, http: str = ANY_PORT) -> list[str]:
    """Return the arguments that start the reducer in the demonstration's folder."""
    return ["reducer", "--rpc", rpc, "--http", http, "--state", "reducer", "--insecure"]


def combiner_arguments(name: str, network: str) -> list[str]:
    """Return the arguments that start a combiner there; ``network`` is the reducer's address."""
    return ["combiner", "--network", network, "--listen", ANY_PORT, "--state", name, "--name", name, "--insecure"]


def client_arguments(name: str, network: str) -> list[str]:
    """Return the arguments that start the client beside ``data/NAME.npz``; no other process is told of that file."""
    variables = [word for variable in ONE_THREAD for word in ("--env", variable)]
    own = ["--network", network, "--state", name, "--name", name, "--data", f"default=data/{name}.npz"]
    return ["client", *own, *variables, "--insecure"]


def start_script(components: Mapping[str, Sequence[str]]) -> str:
    """Return a shell script that starts ``components`` (name: arguments), each with its log in ``logs/NAME.log``."""
    lines = [
        f'runnel {shlex.join(arguments)} 2>>logs/{name}.log & started="$started $!"'
        for name, arguments in components.items()
    ]
    variables = shlex.join(f"{name}={value}" for name, value in ONE_THREAD.items())
    return _SCRIPT.format(variables=variables, runnel=shlex.join(runnel_argv()), commands="\n".join(lines))
