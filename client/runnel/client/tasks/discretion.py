"""Secrets of the site that its containers are given, struck out of what leaves it.

This is against accidents: a script that prints its environment. Who means to take a secret out can write it in another
form, and is kept from that by the site's policy on images and by looking at results.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from runnel.client.tasks.work import Voice
from runnel.common.protocol import RunState

STRUCK_OUT = "[secret of the site]"

_BLOCK_BYTES = 1 << 20
# Of what is shorter, striking it out would spoil results and hide nothing.
_LEAST_SECRET = 8


class Discretion:
    """Strikes out secrets; those of fewer than 8 characters are none.

    Args:
        secrets: as the containers have them.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        # A secret that holds another goes first, so that nothing of it stays.
        found = sorted({each for each in secrets if len(each) >= _LEAST_SECRET}, key=len, reverse=True)
        self._texts = found
        self._bytes = [each.encode() for each in found]

    def text(self, text: str) -> str:
        """Return ``text`` without secrets."""
        for each in self._texts:
            text = text.replace(each, STRUCK_OUT)
        return text

    def copy(self, source: BinaryIO, target: BinaryIO) -> None:
        """Copy what ``source`` still has, without secrets. Blocks."""
        if not self._bytes:
            shutil.copyfileobj(source, target, _BLOCK_BYTES)
            return
        held, keep = b"", len(self._bytes[0]) - 1  # the end of a block may be the beginning of a secret
        while block := source.read(_BLOCK_BYTES):
            held = self._without(held + block)
            target.write(held[: max(0, len(held) - keep)])
            held = held[max(0, len(held) - keep) :]
        target.write(held)

    def rewrite(self, path: Path) -> None:
        """Strike secrets out of the client's own file ``path``. Blocks."""
        if not self._bytes:
            return
        beside = path.with_name(f"{path.name}.discreet")
        with path.open("rb") as source, beside.open("wb") as target:
            self.copy(source, target)
        beside.replace(path)

    def voice(self, voice: Voice) -> Voice:
        """Return what tells ``voice`` the same, without secrets."""
        return _DiscreetVoice(voice, self) if self._texts else voice

    def _without(self, data: bytes) -> bytes:
        for each in self._bytes:
            data = data.replace(each, STRUCK_OUT.encode())
        return data


class _DiscreetVoice:
    def __init__(self, voice: Voice, discretion: Discretion) -> None:
        self._voice = voice
        self._discretion = discretion

    def state(self, state: RunState, detail: str = "") -> None:
        self._voice.state(state, self._discretion.text(detail))

    def line(self, stream: str, text: str) -> None:
        self._voice.line(stream, self._discretion.text(text))
