"""Files over HTTP: what up- and downloads have in common."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends
from fastapi.responses import FileResponse


async def _held() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


Held = Annotated[AsyncExitStack, Depends(_held, scope="request")]
"""What is entered here is left when the answer has been sent, or can't be."""


def upload_schema(description: str) -> dict[str, Any]:
    """Return the OpenAPI of a body that is a file."""
    return {
        "requestBody": {
            "required": True,
            "description": description,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    }


def file_answer(file: Path, *, sha256: str, filename: str) -> FileResponse:
    """Answer with a file that never changes; ``Repr-Digest`` (RFC 9530) carries its SHA-256 (``sha256``: in hex)."""
    return FileResponse(
        file,
        media_type="application/octet-stream",
        filename=filename,
        headers={
            "ETag": f'"{sha256}"',
            "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
            "Cache-Control": "private, max-age=31536000, immutable",
        },
    )
