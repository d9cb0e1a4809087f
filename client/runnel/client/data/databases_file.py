"""The file of a site's databases: TOML, read strictly, so that a misspelt rule is an error and no missing rule."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from runnel.client.data.databases import (
    FILES,
    LANGUAGES,
    Constraints,
    DatabaseConfig,
    DatabaseKind,
    FieldEntry,
    TableEntry,
)
from runnel.client.file_problems import problem
from runnel.common.catalogue import FieldType
from runnel.common.errors import BadSettings
from runnel.common.tasks import Language

_E = TypeVar("_E", bound=Enum)

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_SECRETS = ("password_env", "password_file", "token_env", "token_file")


def read_databases(path: Path, environ: Mapping[str, str]) -> dict[str, DatabaseConfig]:
    """Read and check a file of databases; its relative paths are those from its folder.

    Args:
        path: of the file.
        environ: has the variables that it names for passwords and tokens.

    Raises:
        BadSettings: all that is wrong with it, in one message.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise BadSettings(f"The file of databases {path} can't be read: {error.strerror}.", file=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"The file of databases {path} is not TOML: {error}.", file=str(path)) from error
    try:
        parsed = _File.model_validate(content)
    except ValidationError as error:
        problems = " ".join(problem(details, _known) for details in error.errors())
        raise BadSettings(f"The file of databases {path} is wrong. {problems}", file=str(path)) from error
    return {name: _config(name, each, path, environ) for name, each in parsed.databases.items()}


def _kind(text: object) -> DatabaseKind:
    return _one_of(DatabaseKind, text)


def _field_type(text: object) -> FieldType:
    return _one_of(FieldType, text)


def _language(text: object) -> Language:
    return _one_of(Language, text)


def _one_of(words: type[_E], text: object) -> _E:
    try:
        return words(text)
    except ValueError:
        raise ValueError(f"it is one of {', '.join(each.value for each in words)}") from None


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"it is no regular expression: {error}") from error
    return text


def _labels(names: dict[str, Any]) -> dict[str, Any]:
    for name in names:
        if not _LABEL.fullmatch(name):
            raise ValueError(f"the name {name!r} is to have 1 to 64 letters, digits, dots, dashes and underscores")
    return names


_Limit = Annotated[float, Field(allow_inf_nan=False)] | str
_Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    # Most clients have no such file.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, defer_build=True)


class _Constraints(_Part):
    required: bool = False
    unique: bool = False
    minimum: _Limit | None = None
    maximum: _Limit | None = None
    minimum_length: _Count | None = None
    maximum_length: _Count | None = None
    pattern: Annotated[str, AfterValidator(_pattern)] | None = None
    one_of: list[str] | None = None


class _Field(_Part):
    name: str = Field(min_length=1)
    type: Annotated[FieldType, BeforeValidator(_field_type)]
    label: str = ""
    description: str = ""
    constraints: _Constraints = Field(default_factory=_Constraints)
    lookup: str | None = None

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if self.lookup is not None and self.constraints.one_of is not None:
            raise ValueError("a field has a lookup or one_of, which both say what its values are")
        return self

    def entry(self, lookups: Mapping[str, Mapping[str, str]]) -> FieldEntry:
        one_of = self.constraints.one_of if self.lookup is None else list(lookups[self.lookup])
        told = self.constraints.model_dump() | {"one_of": None if one_of is None else tuple(one_of)}
        return FieldEntry(
            name=self.name,
            type=self.type,
            label=self.label,
            description=self.description,
            constraints=Constraints(**told),
            lookup=self.lookup,
        )


class _Table(_Part):
    description: str = ""
    fields: list[_Field] = Field(default_factory=list)


class _Database(_Part):
    type: Annotated[DatabaseKind, BeforeValidator(_kind)]
    path: str | None = None
    uri: str | None = None
    password_env: str | None = None
    password_file: str | None = None
    token_env: str | None = None
    token_file: str | None = None
    tables: list[str] | None = None
    minimum_rows: _Count = 0
    languages: list[Annotated[Language, BeforeValidator(_language)]] | None = None
    title: str = ""
    description: str = ""
    dictionary: dict[str, _Table] = Field(default_factory=dict)
    lookups: dict[str, dict[str, str]] = Field(default_factory=dict)
    publish: bool = False
    creator: str = ""
    contact: str = ""
    license: str = ""
    version: str = ""

    @model_validator(mode="after")
    def _known_lookups(self) -> Self:
        for table, each in self.dictionary.items():
            for one in each.fields:
                if one.lookup is not None and one.lookup not in self.lookups:
                    known = ", ".join(self.lookups) or "none"
                    raise ValueError(f"the field {one.name} of {table} names the lookup {one.lookup}; there is {known}")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        by_path = self.type in FILES
        if (self.path is None) == (self.uri is None) or (by_path and self.path is None):
            either = self.type is DatabaseKind.SQL
            wanted = "a path (of a SQLite file) or a uri" if either else "a path" if by_path else "a uri"
            raise ValueError(f"a database of the type {self.type.value} has {wanted}, and one of them")
        if self.path is not None and not by_path and self.type is not DatabaseKind.SQL:
            raise ValueError(f"a database of the type {self.type.value} has a uri and no path")
        if self.uri is not None:
            self._check_uri(self.uri)
        given = [name for name in _SECRETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} can't both be given")
        if given and (self.uri is None or self.type not in (DatabaseKind.SQL, DatabaseKind.SPARQL)):
            raise ValueError(f"{given[0]} is for a sql or sparql database with a uri")
        if given and given[0].startswith("token") and self.type is not DatabaseKind.SPARQL:
            raise ValueError(f"{given[0]} is for a sparql database")
        if unfit := set(self.languages or ()) - LANGUAGES[self.type]:
            known = ", ".join(sorted(each.value for each in LANGUAGES[self.type])) or "none"
            raise ValueError(f"its languages are {known}; {', '.join(sorted(each.value for each in unfit))} came")
        return self

    def _check_uri(self, uri: str) -> None:
        parts = urlsplit(uri)
        if not parts.scheme:
            raise ValueError("uri is an address, as postgresql://reader@db.example.org/heart")
        if parts.password is not None:
            raise ValueError("the uri has a password: give it by password_env or password_file")
        if self.type is DatabaseKind.SPARQL and parts.scheme not in ("http", "https"):
            raise ValueError("the uri of a sparql database begins with http:// or https://")


class _File(_Part):
    databases: Annotated[dict[str, _Database], AfterValidator(_labels)]


def _config(name: str, told: _Database, file: Path, environ: Mapping[str, str]) -> DatabaseConfig:
    path = None if told.path is None else (file.parent / told.path).absolute()
    if path is not None:
        wanted = path.is_dir() if told.type is DatabaseKind.FOLDER else path.exists()
        if not wanted:
            what = "folder" if told.type is DatabaseKind.FOLDER else "file or folder"
            raise BadSettings(
                f"The database {name!r} of {file} is to be {path}, and there is no such {what}.", database=name
            )
    uri = f"sqlite:///{path}" if told.type is DatabaseKind.SQL and path is not None else told.uri
    secret = _secret(name, told, file, environ)
    by_token = told.token_env is not None or told.token_file is not None
    return DatabaseConfig(
        name=name,
        kind=told.type,
        path=path,
        uri=uri,
        password=None if by_token else secret,
        token=secret if by_token else None,
        tables=None if told.tables is None else tuple(told.tables),
        minimum_rows=told.minimum_rows,
        languages=None if told.languages is None else frozenset(told.languages),
        title=told.title,
        description=told.description,
        dictionary={
            table: TableEntry(
                description=each.description, fields=tuple(field.entry(told.lookups) for field in each.fields)
            )
            for table, each in told.dictionary.items()
        },
        lookups=told.lookups,
        publish=told.publish,
        creator=told.creator,
        contact=told.contact,
        license=told.license,
        version=told.version,
    )


def _secret(name: str, told: _Database, file: Path, environ: Mapping[str, str]) -> str | None:
    variable = told.password_env or told.token_env
    if variable is not None:
        if not environ.get(variable):
            raise BadSettings(
                f"The database {name!r} of {file} has its secret in the variable {variable}, which is not set.",
                database=name,
            )
        return environ[variable]
    where = told.password_file or told.token_file
    if where is None:
        return None
    try:
        return (file.parent / where).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(
            f"The database {name!r} of {file} has its secret in {file.parent / where}, which can't be read.",
            database=name,
        ) from error


# ---- what is wrong


def _known(place: list[str]) -> list[str]:
    """Return the keys where one was found that is none: databases.LABEL.dictionary.TABLE.fields.0.constraints.…"""
    parts: dict[int, type[BaseModel]] = {1: _File, 3: _Database, 5: _Table, 7: _Field, 8: _Constraints}
    return sorted(parts[len(place)].model_fields)
