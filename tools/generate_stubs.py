"""Generate the Python stubs of ``protos/runnel`` with the pinned compiler of this environment.

Usage: python tools/generate_stubs.py [TARGET]        (default: protos/gen, whose old stubs are replaced)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PROTOS = Path(__file__).parent.parent / "protos"


def generate(target: Path) -> list[Path]:
    """Write the stubs below ``target`` and return their paths relative to it, sorted.

    Raises:
        subprocess.CalledProcessError: the compiler refused; its message is on standard error.
    """
    sources = sorted(path.relative_to(PROTOS).as_posix() for path in (PROTOS / "runnel").rglob("*.proto"))
    scripts = Path(sysconfig.get_path("scripts"))
    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target / "runnel", ignore_errors=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={PROTOS}",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet,only_async:{target}",
            *sources,
        ],
        check=True,
    )
    (target / "runnel" / "rpc" / "py.typed").touch()
    return sorted(path.relative_to(target) for path in (target / "runnel").rglob("*") if path.is_file())


if __name__ == "__main__":
    for written in generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS / "gen"):
        print(written)
