"""Small compute packages, written by tests, and who listens to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

from runnel.client.runtimes import Call, Finished, Limits, PackageFiles, Prepared, Runtime
from runnel.compute_package import read_manifest

ADD_ONE = """
    import json, sys
    import numpy as np
    with np.load(sys.argv[1]) as model:
        arrays = {name: model[name] + np.ones((), model[name].dtype) for name in model.files}
    np.savez(sys.argv[2], **arrays)
    with open(sys.argv[2] + "-metadata", "w") as file:
        json.dump({"num_examples": 7, "loss": 0.5, "note": "done"}, file)
    """
MEASURE = """
    import json, sys
    import numpy as np
    with np.load(sys.argv[1]) as model:
        total = float(sum(model[name].sum() for name in model.files))
    with open(sys.argv[2], "w") as file:
        json.dump({"num_examples": 3, "total": total, "site": "here"}, file)
    """


class Listener:
    """A line sink that keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, stream: str, text: str) -> None:
        self.lines.append((stream, text))

    def said(self, stream: str) -> list[str]:
        """Return the lines of ``stream``."""
        return [text for name, text in self.lines if name == stream]


def write_package(root: Path, files: Mapping[str, str]) -> PackageFiles:
    """Write ``files`` (indented as they stand in a test) to ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return PackageFiles(digest="0" * 64, root=root, manifest=read_manifest(root))


async def run_train(
    runtime: Runtime,
    prepared: Prepared,
    say: Listener,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = 60.0,
    limits: Limits | None = None,
    entry_point: str = "train",
) -> Finished:
    """Run an entry point whose arguments are just words."""
    call = Call(
        entry_point=entry_point,
        arguments=arguments,
        workdir=prepared.package.root,
        env=env or {},
        timeout_s=timeout_s,
        limits=limits or Limits(),
    )
    return await runtime.run(prepared, call, say)
