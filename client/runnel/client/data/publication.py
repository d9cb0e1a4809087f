"""What a site publishes of its databases: those that its file of databases says, as their dictionaries describe them.

The dictionary that is published is the one by which :mod:`.validation` checks the data: there is no other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from runnel.client.data.databases import DatabaseConfig, FieldEntry
from runnel.common.catalogue import MAX_CATALOGUE_BYTES, Catalogue, problems
from runnel.common.errors import BadSettings


def catalogue_of(databases: Iterable[DatabaseConfig]) -> Catalogue:
    """Return what is published of some databases: of those that say so what people need to select from them.

    Tables that nobody may select from are left out. Where a database is, how it is opened, how much is in it and what
    the least is that it gives are no part of it.

    Raises:
        BadSettings: it is more than :data:`~runnel.common.catalogue.MAX_CATALOGUE_BYTES`, or has texts that are no
            plain text.
    """
    told = {"datasets": [_dataset(each) for each in databases if each.publish]}
    try:
        catalogue = Catalogue.model_validate(told)
    except ValidationError as error:
        raise BadSettings(
            f"What the file of databases publishes is not as it should be: {problems(error)}.",
            hint="Correct it, or leave publish out.",
        ) from error
    size = len(catalogue.as_json().encode())
    if size > MAX_CATALOGUE_BYTES:
        raise BadSettings(
            f"What the file of databases publishes has {size:,} bytes; at most {MAX_CATALOGUE_BYTES:,} may be told.",
            hint="Shorten descriptions, or publish fewer databases.",
            size_bytes=size,
        )
    return catalogue


def _dataset(database: DatabaseConfig) -> dict[str, Any]:
    return {
        "id": database.name,
        "title": database.title,
        "description": database.description,
        "creator": database.creator,
        "contact": database.contact,
        "license": database.license,
        "version": database.version,
        "tables": [
            {"name": table, "description": entry.description, "fields": [_field(each) for each in entry.fields]}
            for table, entry in database.dictionary.items()
            if database.allows(table)
        ],
        "lookups": database.lookups,
    }


def _field(entry: FieldEntry) -> dict[str, Any]:
    rules = dataclasses.asdict(entry.constraints)
    if entry.lookup is not None:
        del rules["one_of"]  # the lookup says it
    return {
        "name": entry.name,
        "type": entry.type,
        "label": entry.label,
        "description": entry.description,
        "constraints": rules,
        "lookup": entry.lookup,
    }
