"""What a zygote imports: what a package's scripts do at their top level, of what is not the package's own."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from runnel.client.runtimes.script_imports import Import, installed_imports

pytestmark = pytest.mark.unit


def imports(folder: Path, *scripts: str, **files: str) -> list[Import]:
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return installed_imports(folder / f"{script}.py" for script in scripts)


def test_statements_at_the_top_level_in_their_order(tmp_path: Path) -> None:
    script = """
        from __future__ import annotations
        import json, os.path as path
        from torch.nn import functional as F, Module
        try:
            import fast
        except ImportError:
            import slow
        if True:
            import conditional
        def work():
            import late
        class Net:
            import inner
        import json
        """
    assert imports(tmp_path, "train", train=script) == [
        ("json", ()),
        ("os.path", ()),
        ("torch.nn", ("functional", "Module")),
        ("fast", ()),
    ]


def test_modules_of_the_package_are_followed_and_not_listed(tmp_path: Path) -> None:
    found = imports(
        tmp_path,
        "train",
        "validate",
        train="import model\nfrom lib import layers\nfrom lib.deep.er import x",
        validate="import model, scipy",
        model="import torch\nimport train\nimport data",
        **{
            "lib/__init__": "import a",
            "lib/layers": "from . import near\nfrom .. import nowhere\nfrom .near import value",
            "lib/near": "import b",
            "lib/deep/__init__": "import c",
            "lib/deep/er": "from ..near import z\nimport d",
        },
    )
    (tmp_path / "data").mkdir()  # a folder alone is no module of the package
    assert found == [(name, ()) for name in ("torch", "data", "a", "b", "c", "d", "scipy")]


def test_numpy_comes_with_what_reading_a_model_needs(tmp_path: Path) -> None:
    found = imports(tmp_path, "train", train="import numpy.linalg as la")
    assert found[0] == ("numpy.linalg", ())
    assert ("zipfile", ()) in found
    assert ("zipfile", ()) not in imports(tmp_path, "train", train="import json")


def test_an_extension_module_beside_the_script_is_the_packages_own(tmp_path: Path) -> None:
    (tmp_path / "native.abi3.so").touch()
    assert imports(tmp_path, "train", train="import native, json") == [("json", ())]


@pytest.mark.parametrize("text", ["import json\nx = = 1", "\0", "x = " + "(" * 5000, "# " + "x" * (1 << 20)])
def test_what_is_no_python_is_left_to_the_run_to_tell(tmp_path: Path, text: str) -> None:
    assert imports(tmp_path, "train", "gone", "validate", train=text, validate="import json") == [("json", ())]
