"""What Federated Data Sharing says of its answers about metadata and selections: names, types, what has to be there."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Summary(BaseModel):
    id: str
    dataset_name: str | None = None
    author: str | None = None


class Datasets(BaseModel):
    datasets: list[Summary]


class DcatEntry(BaseModel):
    id: str
    title: str | None = None
    description: str | None = None
    creator: str | None = None
    contactPoint: str | None = None  # noqa: N815
    license: str | None = None
    versionInfo: str | None = None  # noqa: N815
    additionalProperties: dict[str, Any] | None = None  # noqa: N815


class DictionaryField(BaseModel):
    name: str
    label: str
    type: str
    description: str | None = None
    constraints: str | None = None


class Lookup(BaseModel):
    name: str
    description: str


class Dictionary(BaseModel):
    id: str
    fields: list[DictionaryField] = []
    lookups: dict[str, list[Lookup]] = {}


class Dictionaries(BaseModel):
    dictionaries: list[Dictionary]


class SelectionSuccess(BaseModel):
    success: bool
    type: Literal["graphql", "sql"]
    query: str
