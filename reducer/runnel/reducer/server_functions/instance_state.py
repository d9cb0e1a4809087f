"""What a package's ``ServerFunctions`` remember from round to round, as a file that only says what it is.

The attributes of the instance are written as JSON, with their arrays beside it in one ``.npz``: numbers, text, bytes,
lists, tuples, sets, dicts, numpy arrays and numbers, and the generators of :mod:`random` and :mod:`numpy.random`.
Nothing is pickled. Written and read within the walls only; to the reducer it is a file that it keeps.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_TREE = "tree"
_KIND = "kind"
_DEEPEST = 100


class NotKept(TypeError):
    """An attribute is of a type that can't be written; the message names both."""


def write_state(instance: object, path: Path) -> None:
    """Write the attributes of ``instance``.

    Raises:
        NotKept: one of them can't be.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    tree = {name: _encode(value, name, arrays, 0) for name, value in vars(instance).items()}
    written = np.frombuffer(json.dumps(tree).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **{_TREE: written}, **arrays)  # type: ignore[arg-type]


def read_state(instance: object, path: Path) -> None:
    """Give ``instance`` the attributes that were written, in place of all that it has."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    tree = json.loads(arrays.pop(_TREE).tobytes())
    vars(instance).clear()
    vars(instance).update({name: _decode(value, arrays) for name, value in tree.items()})


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray[Any, Any]], depth: int) -> Any:
    if depth > _DEEPEST:
        raise NotKept(f"self.{name} is nested more than {_DEEPEST} levels deep, or contains itself")
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value

    def inner(part: Any) -> Any:
        return _encode(part, name, arrays, depth + 1)

    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise NotKept(f"self.{name} holds a numpy array of Python objects")
        key = f"array{len(arrays)}"
        arrays[key] = array
        # By its name too, for dtypes that a file knows as bytes only.
        return {_KIND: "array" if isinstance(value, np.ndarray) else "scalar", "key": key, "dtype": array.dtype.name}
    if isinstance(value, (bytes, bytearray)):
        return {_KIND: "bytes", "base64": base64.b64encode(value).decode()}
    if isinstance(value, random.Random) and type(value) is random.Random:
        return {_KIND: "random", "state": inner(value.getstate())}
    if isinstance(value, np.random.Generator):
        return {_KIND: "generator", "state": inner(value.bit_generator.state)}
    kinds: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
    if type(value) in kinds:
        return {_KIND: kinds[type(value)], "items": [inner(part) for part in value]}
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        return {_KIND: "dict", "items": [[inner(key), inner(part)] for key, part in value.items()]}
    raise NotKept(
        f"self.{name} is or holds a {type(value).__module__}.{type(value).__qualname__}, which does not last from round"
        " to round: keep numbers, text, lists, dicts or numpy arrays"
    )


def _decode(value: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    if not isinstance(value, dict):
        return value
    kind = value[_KIND]
    if kind in ("array", "scalar"):
        array = arrays[value["key"]]
        if array.dtype.name != value["dtype"]:
            array = array.view(dtype_named(value["dtype"]))
        return array if kind == "array" else array[()]
    if kind == "bytes":
        return base64.b64decode(value["base64"])
    if kind == "random":
        made = random.Random()  # noqa: S311 (as the package had it)
        made.setstate(_decode(value["state"], arrays))
        return made
    if kind == "generator":
        state = _decode(value["state"], arrays)
        generator = np.random.Generator(getattr(np.random, state["bit_generator"])())
        generator.bit_generator.state = state
        return generator
    if kind == "dict":
        return {_decode(key, arrays): _decode(part, arrays) for key, part in value["items"]}
    parts = [_decode(part, arrays) for part in value["items"]]
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](parts)


def dtype_named(name: str) -> np.dtype[Any]:
    """Return a dtype by its name; bfloat16 is that of ``ml_dtypes``."""
    if name == "bfloat16":
        import ml_dtypes

        made: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return made
    return np.dtype(name)
