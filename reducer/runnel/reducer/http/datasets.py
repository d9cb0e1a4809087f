"""Datasets over HTTP: what sites publish of their data, which people select from and have analysed."""

from __future__ import annotations

from fastapi import APIRouter

from runnel.common.catalogue import FieldRules, PublishedField
from runnel.reducer.domain.datasets import DatasetDetails, DatasetView, TableView
from runnel.reducer.http.access import CallerDep, Service
from runnel.reducer.http.document import Document

router = APIRouter(tags=["datasets"])


class Dataset(Document):
    """A dataset at a glance. `sites` publish it, attached or not."""

    id: str
    title: str
    creator: str
    description: str
    sites: list[str]

    @classmethod
    def of(cls, view: DatasetView) -> Dataset:
        """Make the document of a dataset."""
        return cls.model_validate(view, from_attributes=True)


class Datasets(Document):
    """All of them."""

    items: list[Dataset]


class TableField(Document):
    """A field; `lookup` names the list that its values are from."""

    name: str
    type: str
    label: str
    description: str
    constraints: FieldRules
    lookup: str | None

    @classmethod
    def of(cls, field: PublishedField) -> TableField:
        """Make the document of a field."""
        return cls(
            name=field.name,
            type=field.type.value,
            label=field.label,
            description=field.description,
            constraints=field.constraints,
            lookup=field.lookup,
        )


class Table(Document):
    """A table as `sites` describe it; where others describe it otherwise it is there again, as they do."""

    name: str
    description: str
    sites: list[str]
    fields: list[TableField]
    lookups: dict[str, dict[str, str]]

    @classmethod
    def of(cls, view: TableView) -> Table:
        """Make the document of a table."""
        return cls(
            name=view.table.name,
            description=view.table.description,
            sites=list(view.sites),
            fields=[TableField.of(each) for each in view.table.fields],
            lookups={name: dict(values) for name, values in view.lookups.items()},
        )


class DatasetEntry(Dataset):
    """A dataset with its tables."""

    contact: str
    license: str
    version: str
    tables: list[Table]

    @classmethod
    def detailed(cls, view: DatasetDetails) -> DatasetEntry:
        """Make the document of a dataset with its tables."""
        return cls(
            id=view.id,
            title=view.title,
            creator=view.creator,
            description=view.description,
            sites=list(view.sites),
            contact=view.contact,
            license=view.license,
            version=view.version,
            tables=[Table.of(each) for each in view.tables],
        )


@router.get("/datasets", response_model=Datasets, summary="List datasets")
async def datasets(service: Service, caller: CallerDep) -> Datasets:
    """What sites publish of their data, by id: one that several sites have is there once."""
    return Datasets(items=[Dataset.of(each) for each in await service.datasets(caller)])


@router.get("/datasets/{dataset}", response_model=DatasetEntry, summary="Show a dataset")
async def dataset_entry(dataset: str, service: Service, caller: CallerDep) -> DatasetEntry:
    """With the tables that may be selected from, as its sites describe them."""
    return DatasetEntry.detailed(await service.dataset(caller, dataset))
