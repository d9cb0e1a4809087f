"""What the algorithm wrapper of vantage6 reads: its input file, its variables and its token, in each dialect of it."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from runnel.client.tasks.contract import Database
from runnel.common.errors import InvalidInput
from runnel.common.tasks import TaskSpec
from runnel.common.tasks.site_numbers import site_number

TASK_FOLDER = "/mnt/data/task-000000001"
DATA_FOLDER = "/mnt/data"
TEMPORARY_FOLDER = "/mnt/tmp"
TASK_FOLDER_V5 = "/app/vantage6/task"
SESSION_FOLDER_V5 = f"{TASK_FOLDER_V5}/session"

COLLABORATION = 1
OWN_TASK = 1
OWN_RUN = 1

_PARAMETERS = ("query", "sheet_name", "preprocessing")


class Profile(Enum):
    """A dialect of vantage6, by the release that began it: no input and no variables satisfy all of them."""

    V2 = "v2"
    V3 = "v3"
    V4_0 = "v4.0"
    V4 = "v4"
    V5 = "v5"

    @property
    def legacy(self) -> bool:
        """Whether functions are called with a prefix, and results are pickled."""
        return self in {Profile.V2, Profile.V3}

    @property
    def encodes(self) -> bool:
        """Whether the wrapper decodes every variable that it finds."""
        return self in {Profile.V4, Profile.V5}


def profile_of(text: str | None) -> Profile | None:
    """Return the profile that a task names; None: it names none.

    Raises:
        InvalidInput: there is none of that name.
    """
    if text is None:
        return None
    try:
        return Profile(text)
    except ValueError:
        known = ", ".join(each.value for each in Profile)
        raise InvalidInput(f"The profile of a vantage6 task is one of {known}, not {text!r}.", profile=text) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A database as the algorithm sees it: its label, type, and the path inside or the address."""

    label: str
    kind: str
    uri: str = field(repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """The payload of a task: JSON ``{"method", "args", "kwargs", …}``, or bytes that only the algorithm can read.

    ``parameters``: what the task says of databases besides their labels, ``{label: {query, sheet_name, …}}``.
    ``groups``: labels of the data frames that each parameter of a function of release 5 gets; empty: one for each.
    """

    raw: bytes = field(repr=False)
    said: Mapping[str, Any] | None = field(repr=False)
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def method(self) -> str:
        """The function that is called; empty: it is not to be seen."""
        return str(self.said.get("method", "")) if self.said else ""

    def as_file(self, profile: Profile, *, central: bool = False) -> bytes:
        """Return the content of ``INPUT_FILE``."""
        if self.said is None:
            return self.raw
        if profile is Profile.V5:
            return json.dumps(self.said.get("kwargs", {})).encode()
        # Releases 2 and 3 tell a central function from others by this word of the input.
        said = {"master": True, **self.said} if central and profile.legacy else self.said
        plain = json.dumps({key: value for key, value in said.items() if key not in ("databases", "action")})
        return f"json.{plain}".encode() if profile.legacy else plain.encode()


def read_input(payload: bytes) -> Input:
    """Return what a payload says. Pickles of older algorithms are passed on as they are, and never loaded.

    Raises:
        InvalidInput: it is JSON, and not as the wrapper needs it.
    """
    text = payload.removeprefix(b"json.")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):  # of a format that only the algorithm knows
        return Input(raw=payload, said=None)
    if not isinstance(said, dict) or not isinstance(said.get("method"), str):
        raise InvalidInput(
            'The payload of a vantage6 task is a JSON object with "method", and "args" and "kwargs" where it has any.'
        )
    if not isinstance(said.get("args", []), list) or not isinstance(said.get("kwargs", {}), dict):
        raise InvalidInput('In the payload of a vantage6 task "args" is a list and "kwargs" an object.')
    groups = _groups(said.get("databases", []))
    databases = [each for group in groups for each in group]
    parameters = {each["label"]: {key: each[key] for key in _PARAMETERS if key in each} for each in databases}
    labels = tuple(tuple(each["label"] for each in group) for group in groups)
    return Input(raw=payload, said=said, parameters=parameters, groups=labels)


def _groups(databases: Any) -> list[list[dict[str, Any]]]:
    """Return what is said of databases in groups, as clients of release 5 write them; others have one in each."""
    listed = databases if isinstance(databases, list) else [databases]
    groups = [each if isinstance(each, list) else [each] for each in listed]
    if not all(isinstance(each, dict) and isinstance(each.get("label"), str) for group in groups for each in group):
        raise InvalidInput(
            'In the payload of a vantage6 task "databases" is a list of objects with "label", or of lists of these.'
        )
    return groups


def shown_databases(wanted: Sequence[Database]) -> tuple[Shown, ...]:
    """Return how databases are shown: files below ``/mnt/data`` by name, folders by label, addresses as they are.

    Raises:
        InvalidInput: two labels would have the same variables.
    """
    if len({each.label.upper() for each in wanted}) != len(wanted):
        raise InvalidInput(f"Labels differ in more than capitals: {', '.join(each.label for each in wanted)}.")
    names = [each.where.name for each in wanted if isinstance(each.where, Path)]
    shown = []
    for each in wanted:
        where = each.where
        if not isinstance(where, Path):
            uri = where
        elif where.is_dir():
            uri = f"/mnt/{each.label}"
        elif names.count(where.name) == 1:
            uri = f"{DATA_FOLDER}/{where.name}"
        else:
            uri = f"{DATA_FOLDER}/{each.label}{where.suffix}"
        kind = "other" if each.kind == "url" else each.kind
        shown.append(Shown(label=each.label, kind=kind, uri=uri, options=each.options))
    return tuple(shown)


def encoded(text: str) -> str:
    """Return a variable as wrappers from 4.2 on decode it.

    >>> encoded("abc"), encoded("default"), encoded("")
    ('MFRGG!!!', 'MRSWMYLVNR2A!!!!', '')
    """
    return base64.b32encode(text.encode()).decode().replace("=", "!")


def require_readable(env: Mapping[str, str]) -> None:
    """Refuse variables that are not encoded and would end the wrapper, as it takes them for something that is.

    Raises:
        InvalidInput: the first of them.
    """
    for name, value in env.items():
        try:
            decoded = base64.b32decode(value.replace("!", "=").encode())
        except (binascii.Error, ValueError):
            continue
        if b"\0" in decoded or not _is_text(decoded):
            raise InvalidInput(
                f"The variable {name} looks encoded to the wrapper of vantage6, and would end it.",
                hint=f"Give it as {encoded(value)}, which is decoded to what you mean.",
                variable=name,
            )


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def variables(
    profile: Profile, *, spec: TaskSpec, site: str, given: Input, databases: Sequence[Shown], token: str
) -> dict[str, str]:
    """Return what the wrapper finds in its environment, not encoded; the address of the server is not among it."""
    if profile is Profile.V5:
        return _variables_v5(spec, site, given, databases, token)
    labels = [each.label for each in databases]
    if profile.legacy and not databases:
        raise InvalidInput(
            "Algorithms of vantage6 2 and 3 read a database before anything else; this task names none.",
            hint="Name one in databases (--whole-database), or select some data.",
        )
    env = {
        "INPUT_FILE": f"{TASK_FOLDER}/input",
        "OUTPUT_FILE": f"{TASK_FOLDER}/output",
        "TOKEN_FILE": f"{TASK_FOLDER}/token",
        "TEMPORARY_FOLDER": TEMPORARY_FOLDER,
        "USER_REQUESTED_DATABASE_LABELS": ",".join(labels),
        "DB_LABELS": json.dumps(labels) if profile.legacy else ",".join(labels),
    }
    for each in databases:
        name = each.label.upper()
        env |= {f"{name}_DATABASE_URI": each.uri, f"{name}_DATABASE_TYPE": each.kind}
        env |= {f"{name}_DB_PARAM_{key.upper()}": value for key, value in each.options.items()}
        for key, value in given.parameters.get(each.label, {}).items():
            env[f"{name}_{key.upper()}"] = value if isinstance(value, str) else json.dumps(value)
    if profile.legacy and databases:
        env |= {"USER_REQUESTED_DATABASE_LABEL": labels[0], "DATABASE_URI": databases[0].uri}
    return env


def _variables_v5(spec: TaskSpec, site: str, given: Input, databases: Sequence[Shown], token: str) -> dict[str, str]:
    action = str((given.said or {}).get("action", "central_compute" if spec.central else "federated_compute"))
    number = str(site_number(site))
    env = {
        "FUNCTION_ACTION": action,
        "ALGORITHM_METHOD": given.method,
        "INPUT_FILE": f"{TASK_FOLDER_V5}/input",
        "OUTPUT_FILE": f"{TASK_FOLDER_V5}/output",
        "SESSION_FOLDER": SESSION_FOLDER_V5,
        "TASK_ID": str(OWN_TASK),
        "NODE_ID": number,
        "ORGANIZATION_ID": number,
        "COLLABORATION_ID": str(COLLABORATION),
    }
    if spec.central:
        env["CONTAINER_TOKEN"] = token
    if action == "data_extraction" and databases:
        env |= {"DATABASE_URI": databases[0].uri, "DATABASE_TYPE": databases[0].kind}
        env |= {f"DB_PARAM_{key.upper()}": value for key, value in databases[0].options.items()}
    else:
        env["USER_REQUESTED_DATAFRAMES"] = ";".join(",".join(group) for group in frames(given, databases))
    return env


def frames(given: Input, databases: Sequence[Shown]) -> tuple[tuple[str, ...], ...]:
    """Return the labels of the data frames that each parameter of a function of release 5 gets.

    Raises:
        InvalidInput: the payload speaks of one that the task does not name.
    """
    labels = {each.label for each in databases}
    if unknown := sorted({label for group in given.groups for label in group} - labels):
        raise InvalidInput(f"The payload speaks of databases that the task does not name: {', '.join(unknown)}.")
    return given.groups or tuple((each.label,) for each in databases)


def container_token(profile: Profile, *, site: str, image: str, databases: Sequence[Any]) -> str:
    """Return a token of one run: what algorithms read in it is true, and nobody but the run's own server takes it."""
    import jwt  # nothing else of a client needs it

    number = site_number(site)
    container = {
        "client_type": "container",
        "node_id": number,
        "organization_id": number,
        "collaboration_id": COLLABORATION,
        "study_id": None,
        "store_id": None,
        "task_id": OWN_TASK,
        "image": image,
        "databases": list(databases),
    }
    claims: dict[str, Any] = {"sub": container, "jti": secrets.token_hex(16)}
    if profile is Profile.V5:
        container["session_id"] = None
    if profile.legacy:
        container |= {"database": databases[0]["label"] if databases else "default"}
        container["databases"] = container["database"]
        claims["identity"] = container  # where release 2 looks, whose images nothing tells from those of release 3
    return jwt.encode(claims, secrets.token_bytes(32), algorithm="HS256")
