"""The data of a site: its databases, and what tasks select from them."""

from runnel.client.data.databases import (
    Constraints,
    DatabaseConfig,
    DatabaseKind,
    FieldEntry,
    TableEntry,
    database_of,
    find_database,
)
from runnel.client.data.databases_file import read_databases
from runnel.client.data.interruption import Interruption
from runnel.client.data.publication import catalogue_of
from runnel.client.data.selection import Selected, SelectLimits, SiteSelector, open_tables, select, selected
from runnel.common.catalogue import FieldType

__all__ = [
    "Constraints",
    "DatabaseConfig",
    "DatabaseKind",
    "FieldEntry",
    "FieldType",
    "Interruption",
    "SelectLimits",
    "Selected",
    "SiteSelector",
    "TableEntry",
    "catalogue_of",
    "database_of",
    "find_database",
    "open_tables",
    "read_databases",
    "select",
    "selected",
]
