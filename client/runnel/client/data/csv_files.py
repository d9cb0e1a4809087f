"""CSV files as containers find them: RFC 4180, UTF-8, with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runnel.client.data.values import plain
from runnel.common.errors import TooLarge


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvLimits:
    """How large a file may become."""

    rows: int
    bytes: int


def write_csv(
    path: Path, fields: Sequence[str], batches: Iterator[Sequence[Sequence[object]]], limits: CsvLimits
) -> tuple[int, int]:
    """Write a new file and return its rows and bytes; lines end with CR LF, the header is there also without rows.

    Raises:
        TooLarge: it would have more rows or bytes than ``limits`` say.
    """
    rows = size = 0
    with path.open("xb") as file:
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\r\n")
        writer.writerow(fields)
        while True:
            data = buffer.getvalue().encode()
            size += len(data)
            if size > limits.bytes:
                raise TooLarge(
                    f"The selection for {path.name} has more than {limits.bytes:,} bytes.",
                    hint="Select fewer fields or rows.",
                    limit_bytes=limits.bytes,
                )
            file.write(data)
            buffer.seek(0)
            buffer.truncate()
            batch = next(batches, None)
            if batch is None:
                return rows, size
            rows += len(batch)
            if rows > limits.rows:
                raise TooLarge(
                    f"The selection for {path.name} has more than {limits.rows:,} rows.",
                    hint="Select fewer, by a filter or a limit.",
                    limit_rows=limits.rows,
                )
            writer.writerows([plain(value) for value in row] for row in batch)
