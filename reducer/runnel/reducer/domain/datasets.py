"""Datasets of the network: what sites publish under one id, seen together. Pure: descriptions in, views out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from runnel.common.catalogue import PublishedDataset, PublishedTable
from runnel.common.errors import BadQuery

H = TypeVar("H", bound=Hashable)

_NO_FIELDS = frozenset({"where", "order_by", "limit", "offset"})
"""Arguments of a table in a selection that name no field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetView:
    """A dataset at a glance; ``sites``: names of the clients that publish it, attached or not."""

    id: str
    title: str
    creator: str
    description: str
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableView:
    """A table as ``sites`` describe it, with those of the dataset's lookups that its fields name.

    Sites that describe it otherwise have a view of their own.
    """

    table: PublishedTable
    lookups: Mapping[str, Mapping[str, str]]
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDetails:
    """A dataset with its dictionaries: ``tables`` by name, the description that most sites share before others."""

    id: str
    title: str
    description: str
    creator: str
    contact: str
    license: str
    version: str
    sites: tuple[str, ...]
    tables: tuple[TableView, ...]
    at_sites: Mapping[str, PublishedDataset] = field(repr=False)

    def named(self, table: str) -> Sequence[TableView]:
        """Return the descriptions of one table; empty: no site has it."""
        return [each for each in self.tables if each.table.name == table]


def together(dataset: str, at_sites: Mapping[str, PublishedDataset]) -> DatasetDetails:
    """Return what sites, at least one, publish of a dataset: where they differ, what most say comes first."""
    told = list(at_sites.values())
    names = dict.fromkeys(table.name for each in told for table in each.tables)
    return DatasetDetails(
        id=dataset,
        title=usual(each.title for each in told),
        description=usual(each.description for each in told),
        creator=usual(each.creator for each in told),
        contact=usual(each.contact for each in told),
        license=usual(each.license for each in told),
        version=usual(each.version for each in told),
        sites=tuple(sorted(at_sites)),
        tables=tuple(view for name in names for view in _views(name, at_sites)),
        at_sites=at_sites,
    )


def usual(said: Iterable[str]) -> str:
    """Return what is said most often, if anything is; of two the one that was said first.

    >>> usual(["", "Heart", "Heart study", "Heart study"])
    'Heart study'
    """
    found = Counter(each for each in said if each).most_common(1)
    return found[0][0] if found else ""


def _views(name: str, at_sites: Mapping[str, PublishedDataset]) -> list[TableView]:
    groups: dict[str, tuple[PublishedTable, dict[str, Mapping[str, str]], list[str]]] = {}
    for site, dataset in sorted(at_sites.items()):
        for table in dataset.tables:
            if table.name == name:
                lookups = {each.lookup: dataset.lookups[each.lookup] for each in table.fields if each.lookup}
                key = f"{table.model_dump_json()}{sorted((k, sorted(v.items())) for k, v in lookups.items())}"
                groups.setdefault(key, (table, dict(lookups), []))[2].append(site)
    views = [TableView(table=table, lookups=lookups, sites=tuple(sites)) for table, lookups, sites in groups.values()]
    return sorted(views, key=lambda view: -len(view.sites))


def check_query(query: str, details: DatasetDetails, sites: Iterable[str]) -> None:
    """Look whether all that a selection ``{ table { field field } }`` names is published by each of some sites.

    Fields that its filters name below ``where`` are looked at by the site.

    Raises:
        BadQuery: it can't be read, or a site publishes no tables of the dataset.
        UnknownData: a table or a field is not there; it is named, and the site.
    """
    from runnel.common.tasks.queries import find_name, read_query  # with the library of its syntax

    asked = read_query(query)
    for site in sites:
        tables = {table.name: table for table in details.at_sites[site].tables}
        if not tables:
            raise BadQuery(
                f"{site} publishes no dictionary of the dataset {details.id}, so a query can't be checked.",
                hint="Select by a task: the site itself knows its tables.",
            )
        for each in asked:
            name = find_name("table", each.table, tables, inside=f"the dataset {details.id} of {site}")
            fields = [one.name for one in tables[name].fields]
            if not fields:
                continue  # the table is named, and nothing is said of its fields
            filters = [argument for argument in each.arguments if argument not in _NO_FIELDS]
            for one in (*(wanted for wanted, _ in each.fields), *filters):
                find_name("field", one, fields, inside=f"the table {name} of {site}")
