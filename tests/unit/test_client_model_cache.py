"""The few global models that a client keeps."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from runnel.client.model_cache import ModelCache
from runnel.common.blobs import Spares
from runnel.common.errors import Unreachable
from runnel.common.protocol import BlobRef

pytestmark = pytest.mark.unit

MODELS = [b"one", b"two", b"three"]


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


class Above:
    """Has the models, counts what is asked and what the cache holds meanwhile, and may be away."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[bytes] = []
        self.held_meanwhile: list[set[bytes]] = []
        self.away = False

    def held(self) -> set[bytes]:
        return {path.read_bytes() for path in self.root.rglob("*") if path.is_file()}

    async def fetch(self, ref: BlobRef, target: Path, spares: Spares) -> None:
        self.held_meanwhile.append(self.held())
        if self.away:
            raise Unreachable("Nobody is there.")
        data = next(each for each in MODELS if ref_of(each) == ref)
        self.asked.append(data)
        target.write_bytes(data)


async def test_the_oldest_model_goes_before_the_next_one_comes(tmp_path: Path) -> None:
    above = Above(tmp_path / "models")
    cache = ModelCache(above.root, above.fetch)
    for data in [*MODELS[:2], MODELS[0], MODELS[2]]:
        assert (await cache.get(ref_of(data))).read_bytes() == data
    assert above.asked == MODELS
    assert above.held_meanwhile == [set(), {b"one"}, {b"one"}]
    assert above.held() == {b"one", b"three"}


async def test_a_model_that_does_not_come_leaves_the_newest_one(tmp_path: Path) -> None:
    above = Above(tmp_path / "models")
    cache = ModelCache(above.root, above.fetch)
    for data in MODELS[:2]:
        await cache.get(ref_of(data))
    above.away = True
    with pytest.raises(Unreachable):
        await cache.get(ref_of(b"three"))
    assert cache.has(ref_of(b"two"))
    assert above.held() == {b"two"}
