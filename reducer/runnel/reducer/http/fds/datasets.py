"""The metadata of Federated Data Sharing: datasets, their catalogue entries in the words of DCAT, dictionaries."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from runnel.common.catalogue import FieldRules, PublishedField
from runnel.common.errors import NotFound
from runnel.reducer.domain.datasets import DatasetDetails, TableView
from runnel.reducer.http.access import Service
from runnel.reducer.http.fds.access import CallerDep, RecordedRoute

router = APIRouter(route_class=RecordedRoute, include_in_schema=False)


@router.get("/datasets")
async def datasets(service: Service, caller: CallerDep) -> JSONResponse:
    """List the datasets that sites publish, each once."""
    listed = [
        {"id": each.id, "dataset_name": each.title or each.id, "author": each.creator, "sites": list(each.sites)}
        for each in await service.datasets(caller)
    ]
    return JSONResponse({"datasets": listed})


@router.get("/datasets/{dataset}")
async def dataset_entry(dataset: str, service: Service, caller: CallerDep) -> JSONResponse:
    """Catalogue entry and dictionaries of a dataset."""
    found = await service.dataset(caller, dataset)
    return JSONResponse({"catalogue": catalogue_entry(found), "dictionaries": _dictionaries(found)})


@router.get("/datasets/{dataset}/catalogue")
async def catalogue(dataset: str, service: Service, caller: CallerDep) -> JSONResponse:
    """What the dataset is, who made it and who has it."""
    return JSONResponse(catalogue_entry(await service.dataset(caller, dataset)))


@router.get("/datasets/{dataset}/dictionaries")
async def dictionaries(dataset: str, service: Service, caller: CallerDep) -> JSONResponse:
    """What the fields of each table are; of tables that sites describe in several ways, as most of them do."""
    return JSONResponse({"dictionaries": _dictionaries(await service.dataset(caller, dataset))})


@router.get("/datasets/{dataset}/dictionaries/{table}")
async def dictionary(dataset: str, table: str, service: Service, caller: CallerDep, site: str = "") -> JSONResponse:
    """What the fields of one table are, as ``site`` describes it, or as most sites do."""
    found = await service.dataset(caller, dataset)
    views = [each for each in found.named(table) if not site or site in each.sites]
    if not views:
        where = f" of {site[:100]}" if site else ""
        raise NotFound(f"The dataset {found.id}{where} has no table {table[:100]!r}.", dataset=found.id)
    return JSONResponse(_dictionary(views[0]))


def catalogue_entry(found: DatasetDetails) -> dict[str, Any]:
    """Return the entry of a dataset in a catalogue: what is not said is left out."""
    entry = {
        "id": found.id,
        "title": found.title or found.id,
        "description": found.description,
        "creator": found.creator,
        "contactPoint": found.contact,
        "license": found.license,
        "versionInfo": found.version,
    }
    told: dict[str, Any] = {name: value for name, value in entry.items() if value}
    return told | {"additionalProperties": {"sites": list(found.sites)}}


def _dictionaries(found: DatasetDetails) -> list[dict[str, Any]]:
    names = dict.fromkeys(each.table.name for each in found.tables)
    return [_dictionary(found.named(name)[0]) for name in names]


def _dictionary(view: TableView) -> dict[str, Any]:
    lookups = {
        name: [{"name": value, "description": meaning} for value, meaning in values.items()]
        for name, values in view.lookups.items()
    }
    return {
        "id": view.table.name,
        "description": view.table.description,
        "fields": [_field(each) for each in view.table.fields],
        "lookups": lookups,
        "sites": list(view.sites),
    }


def _field(field: PublishedField) -> dict[str, Any]:
    """Clients find a lookup by what the constraints say; other rules are told in words, as those are a text there."""
    return {
        "name": field.name,
        "label": field.label or field.name,
        "type": field.type.value,
        "description": field.description,
        "constraints": field.lookup or in_words(field.constraints),
    }


def in_words(rules: FieldRules) -> str:
    """Return what values keep to, as people read it.

    >>> in_words(FieldRules(required=True, minimum=0, one_of=("0", "1")))
    'required; minimum 0; one of 0, 1'
    """
    told = [name for name in ("required", "unique") if getattr(rules, name)]
    for name in ("minimum", "maximum", "minimum_length", "maximum_length", "pattern"):
        value = getattr(rules, name)
        if value is not None:
            told.append(f"{name.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}")
    if rules.one_of is not None:
        told.append(f"one of {', '.join(rules.one_of)}")
    return "; ".join(told)
