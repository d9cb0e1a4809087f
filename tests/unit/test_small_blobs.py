"""Small models and payloads at the combiner: taken when they are wanted and what they say, whatever else happens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from runnel.combiner.blob_cache import BlobCache
from runnel.combiner.payloads import Payloads
from runnel.combiner.small_blobs import take_small_payload, with_small_model
from runnel.common.blobs import BlobStore, Relay, Spares
from runnel.common.errors import IllegalState, NotFound
from runnel.common.protocol import (
    MOST_WITHIN_BYTES,
    Assignment,
    AssignmentKey,
    BlobRef,
    NodeKind,
    Outcome,
    PayloadKind,
    Report,
    Work,
)
from runnel.transport import NodeIdentity

pytestmark = pytest.mark.unit

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)
ANNA = NodeIdentity(name="a", node_id="id-a", kind=NodeKind.CLIENT, organisation="org-1")


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


class Above:
    """Brings the blobs that it has."""

    def __init__(self, *blobs: bytes) -> None:
        self._blobs = {ref_of(each): each for each in blobs}
        self.asked = 0

    async def fetch(self, ref: BlobRef, target: Path, spares: Spares, relay: Relay) -> None:
        self.asked += 1
        if ref not in self._blobs:
            raise NotFound("Not here.")
        target.write_bytes(self._blobs[ref])


def cache_of(folder: Path, above: Above) -> BlobCache:
    return BlobCache(BlobStore(folder / "blobs", durable=False), above.fetch, keep_bytes=1 << 20)


def order(model: bytes, data: bytes = b"") -> Assignment:
    return Assignment(
        order_id="ord-1", key=KEY, clients=("a",), package=ref_of(b"p"), model=ref_of(model), model_data=data
    )


def report(data: bytes, ref: BlobRef) -> Report:
    return Report(
        key=KEY,
        order_id="ord-1",
        outcomes=(Outcome(client="a", weight=1.0),),
        payload_kind=PayloadKind.UPDATE,
        payload=ref,
        payload_data=data,
        weight=1.0,
    )


def wanted(identity: NodeIdentity, order_id: str) -> None:
    assert (identity, order_id) == (ANNA, "ord-1")


def unwanted(identity: NodeIdentity, order_id: str) -> None:
    raise IllegalState("Nobody waits for it.")


async def test_a_small_model_goes_down_with_its_order(tmp_path: Path) -> None:
    above = Above(b"model")
    went = await with_small_model(order(b"model"), cache_of(tmp_path, above))
    assert (went.model_data, went.payload_within) == (b"model", MOST_WITHIN_BYTES)
    again = await with_small_model(went, cache_of(tmp_path / "other", Above()))
    assert again == went


async def test_a_model_that_is_large_or_not_to_be_had_is_left_to_be_fetched(tmp_path: Path) -> None:
    large = bytes(MOST_WITHIN_BYTES + 1)
    above = Above(large)
    went = await with_small_model(order(large), cache_of(tmp_path, above))
    assert (went.model_data, went.payload_within, above.asked) == (b"", MOST_WITHIN_BYTES, 0)
    assert (await with_small_model(order(b"model"), cache_of(tmp_path, above))).model_data == b""


async def test_a_blob_for_which_somebody_waits_is_not_dropped_for_others(tmp_path: Path) -> None:
    large, other = bytes(700 << 10), bytes(600 << 10)
    cache = cache_of(tmp_path, Above(large, other))
    await cache.bring(ref_of(large))
    with cache.served(ref_of(large)) as source:
        await cache.bring(ref_of(other))
        assert isinstance(source, Path)
        assert source.read_bytes() == large


async def test_a_payload_within_its_report_is_kept_once(tmp_path: Path) -> None:
    payloads = Payloads(tmp_path / "spool", keep_s=60)
    for data in (b"first", b"second"):
        take_small_payload(payloads, ANNA, report(data, ref_of(data)), wanted)
    assert payloads.take("ord-1", "a") == (ref_of(b"second"), b"second")
    assert [path for path in (tmp_path / "spool").rglob("*") if path.is_file()] == []
    assert payloads.take("ord-1", "a") == (None, None)


@pytest.mark.parametrize(
    ("data", "whether"), [(b"right", unwanted), (b"wrong", wanted)], ids=["unwanted", "not what it says"]
)
async def test_what_is_unwanted_or_wrong_leaves_nothing(tmp_path: Path, data: bytes, whether: object) -> None:
    payloads = Payloads(tmp_path / "spool", keep_s=60)
    take_small_payload(payloads, ANNA, report(data, ref_of(b"right")), whether)  # type: ignore[arg-type]
    assert payloads.take("ord-1", "a") == (None, None)
    assert [path for path in (tmp_path / "spool").rglob("*") if path.is_file()] == []


async def test_a_push_that_waited_while_its_order_ended_leaves_nothing(tmp_path: Path) -> None:
    payloads = Payloads(tmp_path / "spool", keep_s=60)
    file = await payloads.open("ord-1", "a", ref_of(b"update"))
    payloads.drop("ord-1")
    with pytest.raises(IllegalState, match="not wanted any more"):
        file.write(0, b"upd")
    assert list((tmp_path / "spool").iterdir()) == []
