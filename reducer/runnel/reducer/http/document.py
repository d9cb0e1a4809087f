"""What the JSON documents that people receive have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """A document; what makes JSON of it is built when it is first needed, not for all of them when a reducer starts.

    It is not for what FastAPI reads from a body: while it builds that, it silences warnings that are none.
    """

    model_config = ConfigDict(defer_build=True)
