"""How values of databases are written into CSV, and how those of filters are read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation

from runnel.common.catalogue import FieldType
from runnel.common.errors import BadQuery

_INTEGERS = 2**63
# What the csv module writes as is wanted: nothing for None, digits, and for floats the shortest that reads back.
_PLAIN = frozenset({str, int, float, type(None)})


def plain(value: object) -> object:
    """Return what the csv module is given for a value of a database.

    Numbers have a ``.`` and no exponent unless they are floating; truth is ``true`` and ``false``; dates and times are
    ISO 8601 (``2026-05-06``, ``2026-05-06T07:08:09``, with the offset where there is one); an interval is its seconds;
    bytes are hexadecimal; lists and records are JSON; NULL is empty.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is bool:
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, ensure_ascii=False, default=plain)
    return str(value)


def _number(text: str) -> int | float:
    number = Decimal(text)
    if number == number.to_integral_value() and abs(number) < _INTEGERS:
        return int(number)
    if math.isinf(float(number)):
        raise ValueError(f"{text!r} is too large")
    return float(number)


_READERS: Mapping[FieldType, Callable[[str], object]] = {
    FieldType.INTEGER: _number,  # an age may be compared with 60.5
    FieldType.DECIMAL: _number,
    FieldType.DATE: date.fromisoformat,
    FieldType.DATETIME: datetime.fromisoformat,
    FieldType.TIME: time.fromisoformat,
}
_EXAMPLES: Mapping[FieldType, str] = {
    FieldType.INTEGER: "a number",
    FieldType.DECIMAL: "a number",
    FieldType.BOOLEAN: "true or false",
    FieldType.DATE: '"2026-05-06"',
    FieldType.DATETIME: '"2026-05-06T07:08:09"',
    FieldType.TIME: '"07:08:09"',
}


def comparable(value: str | bool | None, type: FieldType, *, field: str) -> object:
    """Return what a filter compares a field with: a value of the field's type.

    Args:
        value: as the query has it: the text of a text or number, or truth.
        type: of the field.
        field: its name, for the error.

    Raises:
        BadQuery: it is none of that type.
    """
    if isinstance(value, bool) or type is FieldType.BOOLEAN:
        if isinstance(value, bool) and type is FieldType.BOOLEAN:
            return value
        if isinstance(value, bool) and type in (FieldType.TEXT, FieldType.OTHER):
            return "true" if value else "false"
    elif value is not None:
        reader = _READERS.get(type)
        if reader is None:
            return value
        try:
            return reader(value)
        except (ValueError, InvalidOperation):
            pass
    shown = json.dumps(value, ensure_ascii=False)
    raise BadQuery(
        f"The field {field!r} is compared with {shown:.80}; it holds {type.value} values, such as "
        f"{_EXAMPLES.get(type, 'a text')}.",
        field=field,
    )
