"""Packages with a ``server.py``, and a reducer's side that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np

from runnel.common.aggregation import Update
from runnel.common.blobs import BlobStore
from runnel.common.protocol import BlobRef
from runnel.common.tensors import write_npz
from runnel.compute_package import ServerCode, pack, read_manifest
from runnel.reducer.server_functions.functions import Asked, Permission, ServerFunctions
from runnel.reducer.server_functions.step import Confinement
from runnel.reducer.store.blobs import FolderBlobs

MEDIAN = """
    from fedn.network.combiner.hooks.allowed_import import ServerFunctionsBase, np

    class ServerFunctions(ServerFunctionsBase):
        def aggregate(self, previous_global, client_updates):
            each = [model for model, metadata in client_updates.values()]
            return [np.median(arrays, axis=0) for arrays in zip(*each)]
"""


class Bench:
    """Server functions of packages that are text, on a folder of blobs."""

    def __init__(self, folder: Path, **permission: Any) -> None:
        self.folder = folder
        self.store = BlobStore(folder / "blobs")
        self.places = folder / "places"
        self.said: list[str] = []
        allowed: dict[str, Any] = {"confinement": Confinement.SANDBOX, "timeout_s": 30.0, "memory_bytes": 1 << 30}
        allowed |= permission
        self.functions = ServerFunctions(FolderBlobs(self.store), self.places, Permission(**allowed))
        self._packages = 0

    def asked(self, server: str, **files: str) -> Asked:
        """Return a package with this ``server.py`` as it is asked."""
        self._packages += 1
        folder = self.folder / f"package{self._packages}"
        folder.mkdir()
        (folder / "train.py").write_text("")
        (folder / "server.py").write_text(dedent(server))
        for name, text in files.items():
            (folder / f"{name}.py").write_text(dedent(text))
        code = read_manifest(folder).server
        assert code is not None
        archive = pack(folder, self.folder / f"package{self._packages}.tar.gz").path
        return self.as_asked(self.store.adopt(archive), code)

    def as_asked(self, package: BlobRef, code: ServerCode) -> Asked:
        return Asked(package=package, code=code, seed="7/1", say=lambda stream, line: self.said.append(line))

    def model(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> BlobRef:
        path = self.store.temporary()
        write_npz(path, arrays)
        return self.store.adopt(path)

    def update(
        self, client: str, arrays: Mapping[str, np.ndarray[Any, Any]], **metadata: Any
    ) -> tuple[Update, dict[str, Any]]:
        path = self.folder / f"{client}.npz"
        write_npz(path, arrays)
        return Update(path=path, source=client), metadata
