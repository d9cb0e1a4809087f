"""The program that runs a package's ``ServerFunctions``: one step of one round, then it ends.

It reads a :class:`~runnel.reducer.server_functions.step.Step` from its standard input, puts up walls, and only then
loads numpy and the package. What it prints goes to the session's log. Its answers are files: ``answer`` is JSON,
``result`` the next model, ``state`` what the instance remembers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runnel.reducer.server_functions.step import Confinement, Files, Step
from runnel.reducer.server_functions.walls import NoWalls, View, die_with_parent, enclose, python_folders

if TYPE_CHECKING:
    import numpy as np

    Arrays = list[np.ndarray[Any, Any]]

_CLASS = "ServerFunctions"
_MODULE = "server"
_MOST_TRACE = 4_000
_LAST = "get_incremental_aggregate_model"
_INSIDE = Files(package="/package", inputs="/in", answer="/answer", result="/result", state="/state")


class _Faulty(Exception):
    """A function did not do what it is for; the text goes to people."""


def main() -> None:
    """Take one step."""
    step = Step.from_json(json.load(sys.stdin))
    die_with_parent(step.parent)
    files = step.files
    if step.confinement is Confinement.SANDBOX:
        try:
            enclose(_view(step))
        except NoWalls as error:
            _answer(files, {"no_walls": str(error)})
            return
        files = _INSIDE
        os.chdir(files.package)
    _limit(step)
    with open(os.devnull) as nothing:  # noqa: PTH123 (a device)
        os.dup2(nothing.fileno(), 0)
    answer: dict[str, Any] = {}
    try:
        answer = _take(step, files)
    except _Faulty as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": f"the {step.limits.memory_bytes:,} bytes of memory that it may have were not enough"}
    _answer(files, answer)


def _take(step: Step, files: Files) -> dict[str, Any]:
    from runnel.reducer.server_functions.instance_state import NotKept, read_state, write_state

    with _named(f"loading {step.file}"):
        instance = _instance(step, files)
    missing = [name for name in step.functions if not callable(getattr(instance, name, None))]
    if missing:
        raise _Faulty(f"{_CLASS} of {step.file} has no {missing[0]} once it is loaded")
    if step.state:
        read_state(instance, Path(files.inputs, "state"))
    _seed(step.seed)
    answer: dict[str, Any] = {}
    if step.clients is not None:
        if "client_selection" in step.functions:
            with _named("client_selection"):
                answer["clients"] = instance.client_selection(list(step.clients))
        if "client_settings" in step.functions:
            model = _arrays(step, Path(files.inputs, "model"), 0)
            with _named("client_settings"):
                answer["settings"] = instance.client_settings(model)
    elif step.updates is not None:
        _write_model(step, _aggregated(step, instance, files), files)
    if step.remembers and vars(instance):
        try:
            write_state(instance, Path(files.state))
        except NotKept as error:
            raise _Faulty(str(error)) from None
    return answer


def _aggregated(step: Step, instance: Any, files: Files) -> Any:
    updates = step.updates or ()
    before = _arrays(step, Path(files.inputs, "model"), 0)
    gathered = Path(files.inputs, "updates")
    if step.incremental:
        for place, (client, metadata) in enumerate(updates):
            model = _arrays(step, gathered, place)
            with _named("incremental_aggregate", f" of the update of {client}"):
                instance.incremental_aggregate(client, model, dict(metadata), before)
        with _named(_LAST):
            return instance.get_incremental_aggregate_model()
    given = {
        client: [_arrays(step, gathered, place), dict(metadata)] for place, (client, metadata) in enumerate(updates)
    }
    with _named("aggregate"):
        return instance.aggregate(before, given)


def _instance(step: Step, files: Files) -> Any:
    sys.path[:0] = [files.package, step.shim]
    path = Path(files.package, step.file)
    found = importlib.util.spec_from_file_location(_MODULE, path)
    if found is None or found.loader is None:
        raise _Faulty(f"{step.file} can not be imported")
    module = importlib.util.module_from_spec(found)
    sys.modules[_MODULE] = module
    found.loader.exec_module(module)
    return getattr(module, _CLASS)()


def _seed(seed: str) -> None:
    """Let what a package draws without a generator of its own depend on the session's seed, round and step only."""
    import numpy as np

    random.seed(seed)
    np.random.seed(random.getrandbits(32))
    random.seed(seed)


def _arrays(step: Step, path: Path, place: int) -> Arrays:
    """Read one model of those in a file, as the lists of arrays that FEDn hands over: new ones, native, writable."""
    import numpy as np

    from runnel.reducer.server_functions.instance_state import dtype_named

    kinds = [dtype_named(dtype) for _, _, dtype in step.tensors]
    sizes = [_nbytes(shape, kind.itemsize) for (_, shape, _), kind in zip(step.tensors, kinds, strict=True)]
    made = []
    with path.open("rb") as file:
        file.seek(place * sum(sizes))
        for (_, shape, _), kind, size in zip(step.tensors, kinds, sizes, strict=True):
            array = np.frombuffer(bytearray(file.read(size)), kind.newbyteorder("<"))
            made.append(array.astype(kind, copy=False).reshape(shape))
    return made


def _nbytes(shape: Sequence[int], itemsize: int) -> int:
    size = itemsize
    for length in shape:
        size *= length
    return size


def _write_model(step: Step, result: Any, files: Files) -> None:
    """Write what was returned as float64, little-endian, one array after another; the reducer casts it."""
    import numpy as np

    function = _LAST if step.incremental else "aggregate"
    arrays = list(result.values()) if isinstance(result, Mapping) else result
    if not isinstance(arrays, (list, tuple)) or len(arrays) != len(step.tensors):
        came = f"{len(arrays)}" if isinstance(arrays, (list, tuple)) else f"a {type(result).__name__}"
        raise _Faulty(f"{function} should return a list of {len(step.tensors)} arrays and returned {came}")
    with open(files.result, "wb") as file:  # noqa: PTH123 (opened in place: only this file may be written)
        for (name, shape, dtype), each in zip(step.tensors, arrays, strict=True):
            array = np.asarray(each)
            if array.shape != tuple(shape):
                raise _Faulty(f"{function} returned {name!r} with the shape {array.shape}, expected was {tuple(shape)}")
            if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
                raise _Faulty(f"{function} returned {name!r} with the dtype {array.dtype}, expected was {dtype}")
            file.write(np.ascontiguousarray(array.astype("<f8", copy=False)).data)


@contextlib.contextmanager
def _named(what: str, more: str = "") -> Iterator[None]:
    """Say of an error in the package's code where it came from."""
    try:
        yield
    except (MemoryError, _Faulty):
        raise
    except BaseException as error:  # noqa: BLE001 (a package may raise anything, and its author is told)
        frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename != __file__]
        lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
        text = "".join(lines)
        raise _Faulty(f"{what}{more} ended with {type(error).__name__}:\n{text[-_MOST_TRACE:]}") from None


def _answer(files: Files, answer: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(answer, default=_plain, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        text = json.dumps({"error": f"what it returned can not be written as JSON: {error}"})
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with open(files.answer, "w", encoding="utf-8") as file:  # noqa: PTH123 (as above)
        file.write(text)


def _plain(value: Any) -> Any:
    """Make JSON of what numpy computed."""
    convert: Callable[[], Any] | None = getattr(value, "tolist", None)
    if convert is None:
        raise TypeError(f"a {type(value).__name__} is no value of JSON")
    return convert()


def _view(step: Step) -> View:
    files = step.files
    return View(
        mountpoint=Path(step.mountpoint),
        read=python_folders(),
        placed=[(Path(files.package), _INSIDE.package), (Path(files.inputs), _INSIDE.inputs)],
        written=[
            (Path(files.answer), _INSIDE.answer),
            (Path(files.result), _INSIDE.result),
            (Path(files.state), _INSIDE.state),
        ],
        hidden=[Path(path) for path in step.hidden],
        scratch_bytes=step.limits.scratch_bytes,
    )


def _limit(step: Step) -> None:
    limits = step.limits
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: limits.memory_bytes,
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: 64,
    }
    if step.confinement is Confinement.SANDBOX:
        wanted[resource.RLIMIT_NPROC] = 0
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    main()
