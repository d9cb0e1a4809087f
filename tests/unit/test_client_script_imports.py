"""What a zygote imports: what a package's scripts do at their top level, of what is not the package's own."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from runnel.client.runtimes.script_imports import Import, ImportsPrepared, installed_imports

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


PREPARES = {
    "os.environ": [
        'import os\nos.environ["OMP_NUM_THREADS"] = "1"',
        'import os as o\no.environ.setdefault("A", "1")',
        'import os\nif "A" not in os.environ:\n    os.environ |= {"A": "1"}',
        'from os import environ as env\ntry:\n    del env["A"]\nexcept KeyError:\n    pass',
        'import os\ntry:\n    import os\nexcept ImportError:\n    os.environ.pop("A")',
        'import os\nwith open("x"):\n    os.environ.update(A="1")',
    ],
    "os.putenv": ['import os\nos.putenv("A", "1")'],
    "sys.path": [
        'import sys\nsys.path.insert(0, "vendor")',
        'from sys import path\npath[:0] = ["vendor"]',
        'import sys\nclass Config:\n    sys.path += ["vendor"]',
        "import sys\n(sys.path, other) = [], []",
    ],
    "sys.meta_path": ["import sys\nsys.meta_path.insert(0, object())"],
    "first": ['import os\ndef first():\n    os.environ["A"] = "1"\nfirst()'],
    "dotenv.load_dotenv": ["from dotenv import load_dotenv\nload_dotenv()"],
}


@pytest.mark.parametrize(("what", "lines"), [(what, lines) for what in PREPARES for lines in PREPARES[what]])
def test_an_import_after_a_change_that_it_may_see_is_refused(what: str, lines: str, tmp_path: Path) -> None:
    with pytest.raises(ImportsPrepared, match=rf"train\.py .*\({what}, line \d\) before it imports numpy"):
        imports(tmp_path, "train", train=f"{lines}\nimport numpy")
    before = imports(tmp_path, "train", train=f"import numpy\n{lines}\nimport numpy")
    assert ("numpy", ()) in before
    with pytest.raises(ImportsPrepared, match=rf"beside\.py .*{what}"):
        imports(tmp_path, "train", train="import beside\nimport numpy", beside=lines)


@pytest.mark.parametrize(
    "lines",
    [
        'import os\nhome = os.environ.get("HOME", os.environ["PWD"])\nprint("A" in os.environ, dict(os.environ))',
        "import sys\nprint(sys.path, sys.path[0], sys.path.index('x'), sys.argv.append('x'))",
        'import os\ndef later():\n    os.environ["A"] = "1"',
        "total = " + "1 + " * 2000 + "1",
        'from os import path\npath = path.join("a", "b")\nenviron = {}\nenviron["A"] = "1"',
    ],
)
def test_reading_and_what_is_only_defined_prepares_nothing(lines: str, tmp_path: Path) -> None:
    assert ("numpy", ()) in imports(tmp_path, "train", train=f"{lines}\nimport numpy")


def test_what_one_script_prepares_stands_against_its_own_imports_only(tmp_path: Path) -> None:
    script = 'import os\nos.environ["A"] = "1"'
    assert imports(tmp_path, "train", "validate", train=script, validate="import json") == [("os", ()), ("json", ())]
