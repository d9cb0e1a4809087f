"""The contract with the code of packages, with packages that keep it and packages that don't."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runnel.client import entry_points, run_folders
from runnel.client.domain import TrainResult, ValidateResult
from runnel.client.runtimes import Prepared, ProcessRuntime, Runtime
from runnel.common.errors import (
    BadModel,
    BadOutput,
    EntryPointFailed,
    EntryPointTimeout,
    InvalidInput,
    RunnelError,
)
from runnel.common.tensors import normalise, open_npz, write_npz
from tests.docker_engine import docker_runtime
from tests.doubles.client_packages import ADD_ONE, MEASURE, Listener, write_package
from tests.eventually import eventually

pytestmark = pytest.mark.process

MODEL: dict[str, NDArray[Any]] = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(4, np.int64)}
Train = Callable[..., Coroutine[Any, Any, TrainResult]]


@pytest.fixture(params=["cold", "warm", pytest.param("docker", marks=pytest.mark.docker)])
async def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Runtime]:
    if request.param == "docker":
        async with docker_runtime(tmp_path) as in_containers:
            yield in_containers
        return
    async with ProcessRuntime(
        environments=tmp_path / "e", environ=dict(os.environ), grace_s=0.3, warm=request.param == "warm"
    ) as made:
        yield made


@pytest.fixture
def say() -> Listener:
    return Listener()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "cached.npz"
    write_npz(path, MODEL)
    return path


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def prepare(runtime: Runtime, tmp_path: Path, say: Listener) -> Callable[..., Awaitable[Prepared]]:
    async def write_and_prepare(**scripts: str) -> Prepared:
        files = {"train.py": "pass"} | {f"{name}.py": text for name, text in scripts.items()}
        return await runtime.prepare(write_package(tmp_path / "package", files), say)

    return write_and_prepare


@pytest.fixture
def train(
    runtime: Runtime, prepare: Callable[..., Awaitable[Prepared]], model: Path, workdir: Path, say: Listener
) -> Train:
    async def write_and_train(
        script: str, settings: str = "{}", timeout_s: float = 60.0, *, lend: bool = False
    ) -> TrainResult:
        prepared = await prepare(train=script)
        return await entry_points.train(
            runtime,
            prepared,
            model=model,
            workdir=workdir,
            settings_json=settings,
            env={},
            timeout_s=timeout_s,
            say=say,
            lend=lend,
        )

    return write_and_train


async def test_a_training_gives_update_weight_metrics_and_the_rest(train: Train, workdir: Path, model: Path) -> None:
    before = model.read_bytes()
    result = await train(ADD_ONE)
    with open_npz(result.update, source="test") as opened:
        arrays = opened.arrays()
    assert list(arrays) == ["w", "steps"]
    np.testing.assert_array_equal(arrays["w"], MODEL["w"] + 1)
    assert arrays["steps"] == 5
    assert (result.weight, result.metrics, result.extra) == (7.0, {"loss": 0.5}, {"note": "done"})
    assert list(workdir.iterdir()) == [result.update], "only the update stays"
    assert model.read_bytes() == before


async def test_compressed_fortran_order_and_big_endian_become_canonical(train: Train, tmp_path: Path) -> None:
    plain = await train(ADD_ONE)
    odd = await train("""
        import sys
        import numpy as np
        model = np.load(sys.argv[1])
        w = np.asfortranarray((model["w"] + 1).astype(">f4"))
        np.savez_compressed(sys.argv[2], w=w, steps=model["steps"] + 1)
        """)
    canonical = tmp_path / "canonical.npz"
    normalise(plain.update, canonical, source="the test")
    assert odd.update.read_bytes() == canonical.read_bytes()
    assert odd.weight == 1.0
    assert odd.notes.num_examples is None


SPOIL = {
    "written": "\n    open(sys.argv[1], 'r+b').write(b'spoiled'); import os; os.truncate(sys.argv[1], 10)",
    "mapped": "\n    import mmap; file = open(sys.argv[1], 'r+b'); mmap.mmap(file.fileno(), 0)[:4] = b'spoi'",
    "and failed": "\n    open(sys.argv[1], 'r+b').write(b'spoiled'); raise SystemExit(1)",
    "removed": "\n    import os; os.remove(sys.argv[1])",
}


@pytest.mark.parametrize("lend", [False, True], ids=["copied", "lent"])
@pytest.mark.parametrize("spoil", SPOIL)
async def test_a_script_may_spoil_its_input_but_not_the_cached_model(
    train: Train, runtime: Runtime, model: Path, spoil: str, lend: bool
) -> None:
    before = model.read_bytes()
    with suppress(EntryPointFailed):
        await train(ADD_ONE + SPOIL[spoil], lend=lend)
    # What runs in a container is never given the cached file itself.
    if lend and spoil != "removed" and isinstance(runtime, ProcessRuntime):
        assert not model.exists(), "what was lent and written to is fetched again"
    else:
        assert model.read_bytes() == before


@pytest.mark.parametrize("runtime", ["cold", "warm"], indirect=True)
async def test_a_lent_model_is_not_copied_and_stays(train: Train, model: Path) -> None:
    inode = model.stat().st_ino
    await train(ADD_ONE + "\n    import os; print('inode', os.stat(sys.argv[1]).st_ino)", lend=True)
    result = await train(ADD_ONE + f"\n    import os; assert os.stat(sys.argv[1]).st_ino == {inode}", lend=True)
    assert result.weight == 7.0
    assert model.stat().st_ino == inode


@pytest.mark.parametrize("runtime", ["cold"], indirect=True)
async def test_a_lent_model_may_be_dropped_while_it_is_lent(train: Train, model: Path) -> None:
    result = await train(ADD_ONE + f"\n    import os; os.remove({str(model)!r})", lend=True)
    assert result.weight == 7.0


async def test_a_filesystem_without_copies_by_reference_serves_as_well(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "not between these")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert (await train(ADD_ONE)).weight == 7.0


async def test_a_training_gets_its_settings_and_no_output_exists_before(train: Train, say: Listener) -> None:
    await train(
        """
        import os, shutil, sys
        beside = os.listdir(os.path.dirname(sys.argv[2]))
        print(open(sys.argv[1] + "-metadata").read(), os.path.exists(sys.argv[2]), len(beside))
        shutil.copy(sys.argv[1], sys.argv[2])
        """,
        settings='{"lr": 0.1}',
    )
    assert say.said("stdout") == ['{"lr": 0.1} False 2']
    with pytest.raises(InvalidInput, match="should be a JSON object"):
        await train("pass", settings="[1]")


SAVE = """
    import json, os, sys
    import numpy as np
    model = dict(np.load(sys.argv[1]))
    print("about to write")
    """


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        ("pass", BadOutput, "train ended well but did not write model_out.npz"),
        ("os.mkdir(sys.argv[2])", BadOutput, "as a file but made something else"),
        ("os.mkfifo(sys.argv[2])", BadOutput, "as a file but made something else"),
        ("os.symlink('/etc/passwd', sys.argv[2])", BadOutput, "as a file but made something else"),
        ("open(sys.argv[2], 'w').write('hello')", BadModel, "train"),
        ("model['w'][0, 0] = np.nan; np.savez(sys.argv[2], **model)", BadModel, "NaN or infinity in the tensor 'w'"),
        ("np.savez(sys.argv[2], **(model | {'w': model['w'][:1]}))", BadModel, "'w'"),
        ("np.savez(sys.argv[2], v=model['w'], steps=model['steps'])", BadModel, "'[vw]'"),
        ("np.savez(sys.argv[2], w=model['w'])", BadModel, "'steps'"),
        ("np.savez(sys.argv[2], **(model | {'w': model['w'].astype('f8')}))", BadModel, "float64"),
        ("np.savez(sys.argv[2], w=np.array([{}]), steps=model['steps'])", BadModel, "'w'"),
        ("np.savez(sys.argv[2], **model); os.truncate(sys.argv[2], 300)", BadModel, "train"),
    ],
)
async def test_a_model_that_is_none(
    train: Train, workdir: Path, script: str, error: type[RunnelError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        await train(SAVE + f"\n    {script}\n")
    assert caught.value.fields["log_tail"] == "about to write"
    assert caught.value.fields["output"] == "model_out.npz"
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "should be JSON but is not"),
        ("[1, 2]", "should be a JSON object but is an array"),
        ('{"num_examples": "many"}', "but is 'many'"),
        ('{"num_examples": -1}', "but is '-1'"),
        ('{"num_examples": 0}', "greater than 0"),
        ('{"num_examples": NaN}', "greater than 0"),
        ('{"num_examples": true}', "greater than 0"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "at most 1,048,576 bytes"),
    ],
)
async def test_metadata_that_is_none(train: Train, workdir: Path, text: str, says: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "text").write_text(text)
    copy = "open(sys.argv[2] + '-metadata', 'w').write(open('text').read())"
    with pytest.raises(BadOutput, match=says) as caught:
        await train(SAVE + f"\n    np.savez(sys.argv[2], **model)\n    {copy}\n")
    assert caught.value.fields["output"] == "model_out.npz-metadata"
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "timeout_s", "error"),
    [("import sys; sys.exit(3)", 60.0, EntryPointFailed), ("import time; time.sleep(1000)", 0.5, EntryPointTimeout)],
)
async def test_a_failed_run_leaves_no_files(
    train: Train, workdir: Path, script: str, timeout_s: float, error: type[RunnelError]
) -> None:
    with pytest.raises(error):
        await train(script, timeout_s=timeout_s)
    assert list(workdir.iterdir()) == []


async def test_a_cancelled_run_leaves_no_files(train: Train, workdir: Path, say: Listener) -> None:
    running = asyncio.create_task(train("print('begun'); import time; time.sleep(1000)"))
    await eventually(lambda: say.said("stdout"))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert list(workdir.iterdir()) == []


@contextmanager
def ordinary_rights(folder: Path) -> Iterator[None]:
    """Root may do anything; be somebody else for a while, so that rights count. All may write to ``folder``."""
    if os.geteuid() != 0:
        yield
        return
    folder.chmod(0o777)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folders_without_rights_are_removed_too() -> None:
    with tempfile.TemporaryDirectory() as name, ordinary_rights(Path(name)):
        folder = Path(name) / "run-1"
        inner = folder / "locked" / "inner"
        inner.mkdir(parents=True)
        (inner / "file").touch()
        inner.chmod(0)
        inner.parent.chmod(0)
        with pytest.raises(PermissionError):
            shutil.rmtree(folder)
        run_folders._remove(folder)
        assert not folder.exists()


async def test_an_update_stays_whatever_else_the_run_has_left() -> None:
    with tempfile.TemporaryDirectory() as name, ordinary_rights(Path(name)):
        work = Path(name) / "work"
        async with run_folders.run_folder(work / "one") as folder:
            (folder.path / "file").touch()
            (folder.path / "locked" / "inner").mkdir(parents=True)
            (folder.path / "locked").chmod(0)
            (folder.path / "update.npz").write_bytes(b"update")
            kept = folder.clear(folder.path / "update.npz")
        assert list(work.iterdir()) == [work / "one"]
        assert list((work / "one").iterdir()) == [kept]
        assert kept.read_bytes() == b"update"


def test_folders_nested_too_deep_for_a_path_are_removed_too(tmp_path: Path) -> None:
    folder = tmp_path / "run-1"
    (folder / "beside").mkdir(parents=True)
    (folder / "beside" / "link").symlink_to(tmp_path)
    outside = tmp_path / "outside"
    outside.touch()
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT, dir_fd=here))
    os.close(here)
    run_folders._remove(folder)
    assert list(tmp_path.iterdir()) == [outside]


async def test_a_link_in_place_of_the_mark_leads_nowhere(
    runtime: Runtime, prepare: Callable[..., Awaitable[Prepared]], workdir: Path, say: Listener, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    prepared = await prepare(startup=f"import os; os.symlink({str(elsewhere)!r}, '.runnel-started')")
    with pytest.raises(OSError, match="symbolic links"):
        await entry_points.startup(runtime, prepared, workdir=workdir, env={}, timeout_s=60, say=say)
    assert not elsewhere.exists()


async def _validate(runtime: Runtime, prepared: Prepared, model: Path, workdir: Path, say: Listener) -> ValidateResult:
    return await entry_points.validate(
        runtime, prepared, model=model, workdir=workdir, settings_json="{}", env={}, timeout_s=60, say=say
    )


async def test_a_validation_gives_metrics_weight_and_the_rest(
    runtime: Runtime, prepare: Callable[..., Awaitable[Prepared]], model: Path, workdir: Path, say: Listener
) -> None:
    result = await _validate(runtime, await prepare(validate=MEASURE), model, workdir, say)
    assert (result.weight, result.metrics, result.extra) == (3.0, {"total": 19.0}, {"site": "here"})
    assert list(workdir.iterdir()) == []


async def test_a_metric_that_is_not_finite_is_kept_as_text_and_said(
    runtime: Runtime, prepare: Callable[..., Awaitable[Prepared]], model: Path, workdir: Path, say: Listener
) -> None:
    script = "import sys; open(sys.argv[2], 'w').write('{\"loss\": NaN, \"accuracy\": 0.5}')"
    result = await _validate(runtime, await prepare(validate=script), model, workdir, say)
    assert (result.metrics, result.extra) == ({"accuracy": 0.5}, {"loss": "nan (not a finite number)"})
    assert "metric loss is nan" in say.said("runnel")[0]


async def test_a_validation_without_output(
    runtime: Runtime, prepare: Callable[..., Awaitable[Prepared]], model: Path, workdir: Path, say: Listener
) -> None:
    with pytest.raises(BadOutput, match=r"validate ended well but did not write validation\.json"):
        await _validate(runtime, await prepare(validate="pass"), model, workdir, say)


async def test_startup_runs_once_for_the_unpacked_files_and_again_after_a_failure(
    runtime: Runtime, prepare: Callable[..., Awaitable[Prepared]], workdir: Path, say: Listener, tmp_path: Path
) -> None:
    async def start(prepared: Prepared) -> bool:
        return await entry_points.startup(runtime, prepared, workdir=workdir, env={}, timeout_s=60, say=say)

    assert not await start(await prepare())
    prepared = await prepare(startup="import os, sys; print('started'); sys.exit(not os.path.exists('ready'))")
    with pytest.raises(EntryPointFailed):
        await start(prepared)
    (prepared.package.root / "ready").touch()
    assert sorted(await asyncio.gather(*(start(prepared) for _ in range(3)))) == [False, False, True]
    assert not await start(await runtime.prepare(prepared.package, say)), "remembered over a restart of the client"
    assert say.said("stdout") == ["started", "started"]


async def test_a_seed_is_built_and_checked(
    runtime: Runtime, prepare: Callable[..., Awaitable[Prepared]], workdir: Path, say: Listener, tmp_path: Path
) -> None:
    async def build(script: str) -> Path:
        return await entry_points.build(
            runtime,
            await prepare(build=script),
            seed=tmp_path / "seed.npz",
            workdir=workdir,
            env={},
            timeout_s=60,
            say=say,
        )

    with open_npz(await build("import sys, numpy as np; np.savez(sys.argv[1], w=np.ones(3))"), source="test") as seed:
        assert seed.arrays()["w"].tolist() == [1, 1, 1]
    (tmp_path / "seed.npz").unlink()
    with pytest.raises(BadModel, match="NaN"):
        await build("import sys, numpy as np; np.savez(sys.argv[1], w=np.full(3, np.nan))")
    assert not (tmp_path / "seed.npz").exists()
    with pytest.raises(BadOutput, match=r"did not write seed\.npz"):
        await build("pass")
    assert list(workdir.iterdir()) == []
