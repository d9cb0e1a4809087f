"""``runnel package check``: the first thing that is wrong is named, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from runnel.client.rehearsal import Rehearsal, rehearse
from runnel.common.tensors import write_npz
from runnel.compute_package import pack
from tests.doubles.client_packages import ADD_ONE, MEASURE, Listener, write_package

pytestmark = pytest.mark.process

BUILD = "import sys, numpy as np; np.savez(sys.argv[1], w=np.zeros(4, np.float32))"
GOOD = {"train.py": ADD_ONE, "validate.py": MEASURE, "build.py": BUILD}
UNCHANGED = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"


async def check(folder: Path, files: dict[str, str] | None = None, **options: object) -> Rehearsal:
    if files is not None:
        write_package(folder, files)
    return await rehearse(folder, say=options.pop("say", Listener()), **options)  # type: ignore[arg-type]


async def test_a_good_package_passes_every_step(tmp_path: Path) -> None:
    say = Listener()
    files = GOOD | {
        "startup.py": "print('starting')",
        "train.py": "import os, sys\nprint(os.environ['RUNNEL_DATA'], open(sys.argv[1] + '-metadata').read())\n"
        + dedent(ADD_ONE),
    }
    seen = await check(tmp_path / "p", files, data={"default": Path("/data/x")}, settings={"lr": 1}, say=say)
    assert [step.name for step in seen.steps] == [
        "unpack",
        "manifest",
        "environment",
        "startup",
        "seed",
        "train",
        "update",
        "metadata",
        "validate",
        "metrics",
    ]
    assert seen.ok
    assert seen.warnings == ()
    assert say.said("stdout") == ["starting", '/data/x {"lr": 1}']
    assert seen.steps[-3].detail == "weight 7, loss 0.5"
    assert seen.steps[-1].detail == "total 4"
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == sorted(files)


async def test_an_archive_and_a_given_seed_serve_as_well(tmp_path: Path) -> None:
    write_package(tmp_path / "p", {"train.py": ADD_ONE, "validate.py": MEASURE})
    archive = pack(tmp_path / "p", tmp_path / "p.tar.gz").path
    write_npz(tmp_path / "seed.npz", {"w": np.ones(3)})
    seen = await check(archive, seed=tmp_path / "seed.npz")
    assert seen.ok
    assert seen.steps[-1].detail == "total 6"


@pytest.mark.parametrize(
    ("files", "step", "says", "hint"),
    [
        ({"build.py": ""}, "unpack", "build.py", "Add train.py"),
        ({"train.py": ADD_ONE}, "seed", "no entry point build", "--seed FILE"),
        (GOOD | {"build.py": "pass"}, "seed", "did not write", "last argument"),
        (GOOD | {"train.py": "raise SystemExit(3)"}, "train", "exit status 3", "printed nothing"),
        (GOOD | {"train.py": "pass"}, "update", "did not write model_out.npz", "last argument"),
        (
            GOOD | {"train.py": "import sys, numpy as np; np.savez(sys.argv[2], w=np.zeros(5, np.float32))"},
            "update",
            "'w'",
            "",
        ),
        (
            GOOD | {"train.py": UNCHANGED + "; open(sys.argv[2] + '-metadata', 'w').write('no')"},
            "metadata",
            "should be JSON",
            "json.dump",
        ),
        (GOOD | {"validate.py": "pass"}, "validate", "did not write validation.json", "last argument"),
        (GOOD | {"validate.py": "import sys; open(sys.argv[2], 'w').write('7')"}, "validate", "a number", "dictionary"),
    ],
)
async def test_the_first_step_that_fails_is_the_last_and_says_why(
    tmp_path: Path, files: dict[str, str], step: str, says: str, hint: str
) -> None:
    (tmp_path / "p").mkdir()
    for name, text in files.items():
        (tmp_path / "p" / name).write_text(dedent(text))
    seen = await check(tmp_path / "p")
    assert not seen.ok
    assert [one.name for one in seen.steps if not one.ok] == [step]
    assert seen.steps[-1].name == step
    assert says in seen.steps[-1].detail
    assert hint in seen.steps[-1].hint


async def test_what_is_odd_but_works_is_a_warning(tmp_path: Path) -> None:
    seen = await check(
        tmp_path / "p",
        {"train.py": UNCHANGED, "build.py": BUILD, "validate.py": MEASURE.replace("total", "num_examples")},
    )
    assert not seen.ok, "a weight of zero"
    files = {"train.py": UNCHANGED, "build.py": BUILD}
    seen = await check(tmp_path / "q", files)
    assert seen.ok
    assert [warning.split(":")[0] for warning in seen.warnings] == [
        "The model that came out of train is the one that went in",
        "train gave no num_examples",
        "The package has no entry point validate",
    ]
    files["validate.py"] = "import sys; open(sys.argv[2], 'w').write('{\"report\": \"fine\"}')"
    seen = await check(tmp_path / "r", files)
    assert seen.ok
    assert "validate gave no finite numbers" in seen.warnings[-1]


async def test_what_the_package_leaves_out_is_missing_as_it_would_be_at_a_client(tmp_path: Path) -> None:
    files = GOOD | {"train.py": "import helper\n", "helper.py": "", ".runnelignore": "helper.py\n"}
    seen = await check(tmp_path / "p", files)
    assert seen.steps[-1].name == "train"
    assert "exit status 1" in seen.steps[-1].detail


async def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    seen = await check(tmp_path / "gone")
    assert [step.name for step in seen.steps] == ["unpack"]
    assert "no folder or archive" in seen.steps[0].detail


async def test_a_missing_database_is_told_by_the_option_that_gives_it(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "train.py").write_text("import os\nprint(os.environ['RUNNEL_DATA'])\n")
    seed = tmp_path / "seed.npz"
    np.savez(seed, w=np.zeros(2))
    found = await rehearse(package, seed=seed, say=lambda stream, text: None)
    assert not found.ok
    assert "--data NAME=PATH" in found.steps[-1].hint
    assert "RUNNEL_DATA" in found.steps[-1].hint
