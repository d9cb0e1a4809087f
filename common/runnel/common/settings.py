"""Settings from four places into one validated pydantic model.

A setting is taken from the first place that has it:

1. the command line (``--heartbeat-s 5``),
2. the environment (``RUNNEL_CLIENT_HEARTBEAT_S=5``, else ``RUNNEL_HEARTBEAT_S=5``, which all components read; a text
   may lie in a file, where secrets of containers are: ``RUNNEL_CLIENT_TOKEN_FILE=/run/secrets/token``),
3. the settings file in TOML (``heartbeat_s = 5``),
4. the default of the model's field.

A whole value is taken, mappings and lists are not merged. An unknown key or a bad value raises
:class:`~runnel.common.errors.BadSettings` with key, value and place. Durations and sizes are plain numbers whose unit
is in the key (``heartbeat_s``, ``max_model_bytes``); sizes declared as :data:`Bytes` may be written ``"512MiB"``.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticUndefined

from runnel.common.errors import BadSettings, RunnelError
from runnel.common.logs import MASK, is_secret_name, mask

M = TypeVar("M", bound=BaseModel)

SHARED_PREFIX = "RUNNEL_"
OWN_PREFIX_ONLY = "own_prefix_only"
"""Key of a field's ``json_schema_extra``: a variable with the shared prefix has another meaning."""
# Kubernetes sets these in every container for a service called like a component: RUNNEL_CLIENT_PORT_7400_TCP_ADDR, …
_SERVICE_LINK = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError as error:
        raise ValueError("a size is a number of bytes or a number and a unit, such as 512MiB or 2GB") from error


Bytes = Annotated[int, BeforeValidator(_size)]
"""A number of bytes, as an integer or as text with a unit: ``536870912``, ``"512MiB"``, ``"2GB"``."""

BlobPort = Annotated[
    int,
    Field(
        ge=-1,
        le=65535,
        description="Port beside gRPC's, on the same address, for blobs of more than a megabyte: a fraction of the"
        " processor time. 0 picks one; -1: none. Who can't reach it uses gRPC.",
    ),
]
"""Where a reducer or combiner moves large blobs."""

AdvertisedBlobPort = Annotated[
    int | None,
    Field(ge=1, le=65535, description="The blob port that nodes are told, if it is published under another number."),
]
"""The same as nodes are told it; None: as it is."""


def checked(check: Callable[[Any], Any]) -> AfterValidator:
    """Return a validator for ``Annotated[str, checked(valid_name)]`` from a function that raises ``RunnelError``."""

    def run(value: Any) -> Any:
        try:
            return check(value)
        except RunnelError as error:
            raise PydanticCustomError("runnel", "{problem}", {"problem": str(error)}) from error

    return AfterValidator(run)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    value: object
    source: str


def load_settings(
    model: type[M], *, flags: Mapping[str, object], environ: Mapping[str, str], prefix: str, file: Path | None
) -> M:
    """Return ``model`` filled from flags, environment, file and defaults, in this order of precedence.

    Args:
        model: its field names are the keys.
        flags: by field name, as the command line parsed them; None or an empty list stands for "not given".
        environ: the environment; a variable that is set but empty counts as not given. Lists are written ``a,b`` or as
            JSON, mappings ``name=value,other=value`` or as JSON.
        prefix: of this component, such as ``RUNNEL_CLIENT_``. A variable with it that no field has is an error. Without
            such a variable ``RUNNEL_`` is tried, where other components' names are none of our business.
        file: a TOML file, or None.

    Raises:
        BadSettings: everything that is wrong, in one message.
    """
    given: dict[str, _Given] = {}
    problems: list[str] = []
    for found, unknown in (
        _from_file(model, file),
        _from_environment(model, environ, prefix),
        _from_flags(model, flags),
    ):
        given |= found
        problems += unknown
    if not problems:
        try:
            return model.model_validate({key: each.value for key, each in given.items()})
        except ValidationError as error:
            problems = [_problem(model, details, given, prefix) for details in error.errors()]
    raise BadSettings(" ".join(problems), hint="Nothing was started.")


def describe_settings(model: type[BaseModel], *, prefix: str) -> str:
    """Return a Markdown table of all settings: key, variable, default and meaning (``Field(description=…)``)."""
    rows = ["| Setting | Environment variable | Default | Meaning |", "|---|---|---|---|"]
    for key, info in model.model_fields.items():
        if info.is_required():
            default = "(needed)"
        else:
            value = info.get_default(call_default_factory=True, validated_data={})
            default = "" if value in (None, "", PydanticUndefined) else f"`{_toml(value)}`"
        meaning = (info.description or "").replace("|", "\\|").replace("\n", " ")
        rows.append(f"| `{key}` | `{prefix}{key.upper()}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, SecretStr):
        return MASK
    return json.dumps(value, default=str, ensure_ascii=False)


def _from_file(model: type[BaseModel], file: Path | None) -> tuple[dict[str, _Given], list[str]]:
    if file is None:
        return {}, []
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSettings(
            f"The settings file {file} cannot be read: {error.strerror}.", hint="Check the path.", file=str(file)
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(
            f"The settings file {file} is not TOML: {error}.", hint="Correct it.", file=str(file)
        ) from error
    source = f"file {file}"
    known = {key: _Given(value=value, source=source) for key, value in content.items() if key in model.model_fields}
    return known, [
        _unknown(key, value, source, key, model.model_fields) for key, value in content.items() if key not in known
    ]


def _from_environment(
    model: type[BaseModel], environ: Mapping[str, str], prefix: str
) -> tuple[dict[str, _Given], list[str]]:
    known: dict[str, _Given] = {}
    problems: list[str] = []
    for key, info in model.model_fields.items():
        own_only = isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get(OWN_PREFIX_ONLY)
        by_file = _by_file(model, key, prefix)
        if by_file and (path := environ.get(by_file)):
            _read_file(known, problems, key, Path(path), by_file)
            if environ.get(f"{prefix}{key.upper()}"):
                problems.append(f"Both {prefix}{key.upper()} and {by_file} are set; only one can be meant.")
            continue
        for first in (prefix,) if own_only else (prefix, SHARED_PREFIX):
            variable = f"{first}{key.upper()}"
            if text := environ.get(variable):
                _add(known, problems, key, text, f"environment variable {variable}", info.annotation)
                break
    if prefix != SHARED_PREFIX:
        names = {key.upper(): key for key in model.model_fields}
        for variable, text in environ.items():
            name = variable.removeprefix(prefix)
            if _by_file(model, name.removesuffix("_FILE").lower(), prefix) == variable:
                continue
            if name != variable and text and name not in names and not _SERVICE_LINK.fullmatch(name):
                source = f"environment variable {variable}"
                problems.append(_unknown(name.lower(), text, source, variable, names, prefix))
    return known, problems


def _by_file(model: type[BaseModel], key: str, prefix: str) -> str | None:
    """Return the variable that names a file with the text of ``key``; None: it is no text, or there is such a key."""
    if f"{key}_file" in model.model_fields or key not in model.model_fields:
        return None
    texts = {str, SecretStr} & set(_kinds(model.model_fields[key].annotation))
    return f"{prefix}{key.upper()}_FILE" if texts else None


def _read_file(known: dict[str, _Given], problems: list[str], key: str, path: Path, variable: str) -> None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        problems.append(f"The file {path} (environment variable {variable}) cannot be read: {reason}.")
        return
    if text:
        known[key] = _Given(value=text, source=f"file {path} (environment variable {variable})")
    else:
        problems.append(f"The file {path} (environment variable {variable}) is empty.")


def _from_flags(model: type[BaseModel], flags: Mapping[str, object]) -> tuple[dict[str, _Given], list[str]]:
    known: dict[str, _Given] = {}
    problems: list[str] = []
    for key, value in flags.items():
        if value is None or value in ([], ()):
            continue
        if key not in model.model_fields:
            problems.append(_unknown(key, value, _flag(key), _flag(key), model.model_fields))
            continue
        _add(known, problems, key, value, _flag(key), model.model_fields[key].annotation)
    return known, problems


def _add(
    known: dict[str, _Given], problems: list[str], key: str, value: object, source: str, annotation: object
) -> None:
    try:
        known[key] = _Given(value=_shape(value, annotation), source=source)
    except ValueError as error:
        problems.append(_bad(key, value, source, str(error)))


def _shape(value: object, annotation: object) -> object:
    """Turn texts into the mapping or list that a field wants: JSON, ``a,b``, ``name=value,…`` or a list of the latter.

    Raises:
        ValueError: it can't be read as such.
    """
    kinds = list(_kinds(annotation))
    mapping = any(issubclass(kind, (dict, Mapping, BaseModel)) for kind in kinds)
    listing = any(issubclass(kind, (list, tuple, set, frozenset)) for kind in kinds)
    if not (mapping or listing):
        return value
    if isinstance(value, str):
        text = value.strip()
        if text[:1] in ("{", "["):
            return json.loads(text)
        value = [part.strip() for part in text.split(",") if part.strip()]
    if not mapping or not isinstance(value, (list, tuple)):
        return value
    pairs: dict[str, str] = {}
    for part in value:
        name, equals, content = str(part).partition("=")
        if not equals or not name:
            raise ValueError(f"{part!r} is not of the form NAME=VALUE")
        if name in pairs:
            raise ValueError(f"{name!r} is given twice")
        pairs[name] = content
    return pairs


def _kinds(annotation: object) -> Iterable[type]:
    """Yield the classes that ``annotation`` consists of, through unions, ``Annotated`` and generic aliases."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif isinstance(origin, type):
        yield origin
    elif isinstance(annotation, type):
        yield annotation


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _shown(key: str, value: object) -> str:
    if is_secret_name(key):
        return repr(MASK)
    text = repr(mask(value))
    return text if len(text) <= 100 else f"{text[:100]}…"


def _unknown(key: str, value: object, source: str, written: str, names: Iterable[str], prefix: str = "") -> str:
    """Say that ``written`` is no setting, and which one it may have been meant to be."""
    names = sorted(names)
    near = difflib.get_close_matches(key.upper() if prefix else key, names, n=1, cutoff=0.6)
    like = _flag(near[0]) if near and written.startswith("--") else f"{prefix}{near[0]}" if near else ""
    allowed = f"Did you mean {like}?" if near else f"Known are {', '.join(f'{prefix}{name}' for name in names)}."
    return f"{written} = {_shown(key, value)} ({source}) is no setting. {allowed}"


def _bad(key: str, value: object, source: str, problem: str) -> str:
    return f"{key} = {_shown(key, value)} ({source}) is no good value: {problem.rstrip('.')}."


def _problem(model: type[BaseModel], details: ErrorDetails, given: Mapping[str, _Given], prefix: str) -> str:
    place = [str(part) for part in details["loc"]]
    key = ".".join(place)
    message = details["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not place:
        return f"The settings do not fit together: {message.rstrip('.')}."
    top = place[0]
    if details["type"] == "missing" and len(place) == 1:
        meaning = model.model_fields[top].description
        return (
            f"{top} is needed{f' ({meaning})' if meaning else ''}: say {_flag(top)}, set the environment variable "
            f"{prefix}{top.upper()} or write {top} in a settings file."
        )
    source = given[top].source if top in given else "default"
    secret = any(map(is_secret_name, place)) or SecretStr in _kinds(model.model_fields[top].annotation)
    value = MASK if secret else details["input"]
    return _bad(key, value, source, message)
