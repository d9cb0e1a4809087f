"""What a site tells the network of its data: datasets, their tables and fields, and nothing of what is in them.

One description for all: the site's file of databases is checked against it, it travels as JSON, and the reducer keeps
and serves it. Whatever comes from a site is text for people in other places, so it is bounded and printable.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from runnel.common.errors import InvalidInput

MAX_CATALOGUE_BYTES = 256 << 10
"""UTF-8 bytes of all that one site tells of its data, as JSON."""

MAX_DATASETS = 256
"""Datasets of one site."""

_SHOWN_PROBLEMS = 10
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class FieldType(Enum):
    """What a field holds, in the words of data dictionaries."""

    INTEGER = "integer"
    DECIMAL = "decimal"
    TEXT = "text"
    BOOLEAN = "boolean"
    DATE = "date"
    DATETIME = "datetime"
    TIME = "time"
    OTHER = "other"


def _dataset(text: str) -> str:
    if not _DATASET.fullmatch(text):
        raise ValueError("should have 1 to 64 letters, digits, dots, dashes and underscores")
    return text


def _line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("should have printable characters only, in one line")
    return text


def _lines(text: str) -> str:
    if not text.replace("\n", "").replace("\t", "").isprintable():
        raise ValueError("should have printable characters, tabs and line ends only")
    return text


DatasetId = Annotated[str, AfterValidator(_dataset)]
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_line)]
Line = Annotated[str, Field(max_length=500), AfterValidator(_line)]
Lines = Annotated[str, Field(max_length=10_000), AfterValidator(_lines)]
Limit = Annotated[float, Field(allow_inf_nan=False)] | Line


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class FieldRules(_Strict):
    """What the values of a field keep to, as far as it is said. Lengths are characters."""

    required: bool = False
    unique: bool = False
    minimum: Limit | None = None
    maximum: Limit | None = None
    minimum_length: int | None = Field(default=None, ge=0)
    maximum_length: int | None = Field(default=None, ge=0)
    pattern: Lines | None = None
    one_of: tuple[Line, ...] | None = None


class PublishedField(_Strict):
    """One field; ``lookup``: which of the dataset's lookups its values are from."""

    name: Name
    type: FieldType
    label: Line = ""
    description: Lines = ""
    constraints: FieldRules = FieldRules()
    lookup: Name | None = None


class PublishedTable(_Strict):
    """One table."""

    name: Name
    description: Lines = ""
    fields: tuple[PublishedField, ...] = ()

    @model_validator(mode="after")
    def _no_two(self) -> Self:
        _require_different([each.name for each in self.fields], f"fields of {self.name!r}")
        return self


class PublishedDataset(_Strict):
    """One dataset: what a site calls a database. Sites that give it the same id say that theirs is of the same kind.

    Args:
        id: the database's label, which selections name.
        creator: who made it; ``contact``: whom to ask; ``license``, ``version``: of the data.
        tables: its data dictionary.
        lookups: values and what they mean, by the name that fields say.
    """

    id: DatasetId
    title: Line = ""
    description: Lines = ""
    creator: Line = ""
    contact: Line = ""
    license: Line = ""
    version: Line = ""
    tables: tuple[PublishedTable, ...] = ()
    lookups: dict[Name, dict[Name, Line]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _require_different([each.name for each in self.tables], f"tables of {self.id!r}")
        for table in self.tables:
            for field in table.fields:
                if field.lookup is not None and field.lookup not in self.lookups:
                    raise ValueError(f"the field {field.name!r} of {table.name!r} names no lookup of the dataset")
        return self

    def as_json(self) -> str:
        """Return what is stored: only what was said."""
        return self.model_dump_json(exclude_defaults=True)


class Catalogue(_Strict):
    """All that one site tells of its data."""

    datasets: tuple[PublishedDataset, ...] = Field(default=(), max_length=MAX_DATASETS)

    @model_validator(mode="after")
    def _no_two(self) -> Self:
        _require_different([each.id for each in self.datasets], "datasets")
        return self

    def as_json(self) -> str:
        """Return what travels: only what was said."""
        return self.model_dump_json(exclude_defaults=True)


def read_catalogue(text: str, *, source: str) -> Catalogue:
    """Return the catalogue that ``text`` is; ``source`` says from whom it came.

    Raises:
        InvalidInput: all that is wrong with it, each with where it is.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_CATALOGUE_BYTES:
        raise InvalidInput(f"What {source} tells of its data has {size:,} bytes; at most {MAX_CATALOGUE_BYTES:,} go.")
    try:
        return Catalogue.model_validate_json(text)
    except ValidationError as error:
        raise InvalidInput(f"What {source} tells of its data is not as expected: {problems(error)}.") from error


def read_dataset(text: str) -> PublishedDataset:
    """Return a dataset that :meth:`PublishedDataset.as_json` wrote; raises ValueError if it is none."""
    return PublishedDataset.model_validate_json(text)


def problems(error: ValidationError) -> str:
    """Return what is wrong with a description, each with where it is: the first few of them."""
    found = error.errors()
    told = [f"{'.'.join(map(str, each['loc'])) or 'all of it'}: {each['msg']}"[:300] for each in found]
    more = f"; and {len(told) - _SHOWN_PROBLEMS} more" if len(told) > _SHOWN_PROBLEMS else ""
    return "; ".join(told[:_SHOWN_PROBLEMS]) + more


def _require_different(names: list[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two {what} are called {name!r}")
        seen.add(name)
