"""Datasets of a network: what its sites publish of their data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from runnel.sdk.connection import Connection
from runnel.sdk.paths import quoted
from runnel.sdk.values import read


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset: what selections call a database. ``sites``: names of the clients that publish it, attached or not."""

    id: str
    title: str
    creator: str
    description: str
    sites: tuple[str, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def tables(self) -> tuple[Mapping[str, Any], ...]:
        """Its tables, if it was asked for by ``show``: mappings with name, description, sites, fields and lookups.

        Where sites describe a table in several ways it is there several times, each with the sites that say so.
        """
        return tuple(self.raw.get("tables", ()))


class Datasets:
    """``network.datasets``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self) -> Iterator[Dataset]:
        """Yield the datasets that sites publish, by id, without their tables."""
        return (_dataset(item) for item in self._connection.get("datasets")["items"])

    def show(self, dataset: str) -> Dataset:
        """Return a dataset with its tables; raises NotFound when no site publishes it."""
        return _dataset(self._connection.get(f"datasets/{quoted(dataset)}"))


def _dataset(document: Mapping[str, Any]) -> Dataset:
    return read(Dataset, document, sites=tuple(document["sites"]))
