"""The parts that the messages of ``runnel.rpc.v1`` share, between protobuf and plain values.

Everything that ends in ``from_wire`` raises :class:`InvalidInput` naming the field that does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any, TypeVar

from runnel.common.errors import BadSettings, InvalidInput
from runnel.common.ids import valid_name
from runnel.common.json_object import read_object
from runnel.common.protocol import (
    MAX_EXTRA_BYTES,
    MAX_METRIC_NAME,
    MAX_METRICS,
    MAX_TEXT,
    MAX_WEIGHT,
    AssignmentKey,
    BlobRef,
    Failure,
    Member,
    NodeKind,
    Outcome,
    Work,
)
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport.addresses import parse_address

E = TypeVar("E", bound=Enum)

_ID_LENGTH = 128
_DESCRIPTION_LENGTH = 500
_HOLDING = 10_000
_CUT_MARK = " …"


def bad_field(field: str, wanted: str, came: object) -> InvalidInput:
    """Make the error that names ``field``, what it must be and what came."""
    return InvalidInput(f"Field {field} must be {wanted}, not {came!r:.120}.", field=field)


def text_to_wire(text: str, most: int | None = None) -> str:
    """Return ``text`` with what protobuf can't carry replaced: lone surrogates, from programs and file names.

    What is longer than ``most`` characters is cut, and a mark says so.
    """
    if most is not None and len(text) > most:
        text = text[: most - len(_CUT_MARK)] + _CUT_MARK
    return text.encode("utf-8", "replace").decode()


def text_from_wire(text: str, field: str, most: int) -> str:
    """Return ``text`` if it has at most ``most`` characters."""
    if len(text) > most:
        raise bad_field(field, f"a text of at most {most:,} characters", f"one of {len(text):,}")
    return text


def _object_from_wire(text: str, field: str) -> str:
    """Return ``text`` if it is empty or a JSON object that everybody can read."""
    try:
        read_object(text, what=f"Field {field}", most_bytes=MAX_EXTRA_BYTES)
    except InvalidInput as error:
        raise InvalidInput(error.message, field=field) from None
    return text


def _address_from_wire(text: str, field: str) -> str:
    if not text:
        return text
    try:
        return str(parse_address(text, key=field))
    except BadSettings as error:
        raise InvalidInput(f"Field {field}: {error.message}", field=field) from None


def name_from_wire(text: str, field: str, *, optional: bool = False) -> str:
    """Return ``text`` if it is a name of a node, or empty where that is allowed."""
    if optional and not text:
        return text
    try:
        return valid_name(text)
    except InvalidInput as error:
        raise InvalidInput(f"Field {field}: {error.message}", hint=error.hint, field=field) from None


def names_from_wire(texts: Any, field: str) -> tuple[str, ...]:
    """Return names of nodes."""
    return tuple(name_from_wire(text, field) for text in texts)


def id_from_wire(text: str, field: str) -> str:
    """Return ``text`` if it may be an identifier."""
    if not 0 < len(text) <= _ID_LENGTH or not text.isprintable():
        raise bad_field(field, f"an identifier of 1 to {_ID_LENGTH} printable characters", text)
    return text


def _finite(number: float, field: str) -> float:
    if not math.isfinite(number):
        raise bad_field(field, "a finite number", number)
    return number


def not_negative(number: float, field: str) -> float:
    """Return ``number`` if it is finite and not negative."""
    if not (math.isfinite(number) and number >= 0.0):
        raise bad_field(field, "a finite number that is not negative", number)
    return number


def _weight_from_wire(number: float, field: str) -> float:
    if not_negative(number, field) > MAX_WEIGHT:
        raise bad_field(field, f"at most {MAX_WEIGHT:g}, being a number of examples", number)
    return number


def numbers_from_wire(mapping: Mapping[str, float], field: str) -> dict[str, float]:
    """Return finite numbers by name, sorted."""
    if len(mapping) > MAX_METRICS:
        raise bad_field(field, f"at most {MAX_METRICS} numbers", f"{len(mapping):,} of them")
    # A map of the wire comes in any order, another one each time.
    return {
        text_from_wire(name, f"{field}: a name", MAX_METRIC_NAME): _finite(number, f"{field}[{name!r:.60}]")
        for name, number in sorted(mapping.items())
    }


def enum_from_wire(kind: type[E], wire: Any, prefix: str, number: int, field: str) -> E:
    """Return the member of ``kind`` that ``number`` stands for in the enum ``wire``, whose names begin with ``prefix``.

    0 (unspecified) and numbers of newer versions are refused.
    """
    try:
        return kind[wire.Name(number).removeprefix(prefix)]
    except (KeyError, ValueError):
        raise bad_field(field, "one of " + ", ".join(each.value for each in kind), number) from None


def kind_to_wire(kind: NodeKind) -> pb.NodeKind.ValueType:
    """Return the number of ``kind`` on the wire."""
    return pb.NodeKind.Value(f"NODE_KIND_{kind.name}")


def kind_from_wire(number: int, field: str) -> NodeKind:
    """Return the kind of node that ``number`` stands for."""
    return enum_from_wire(NodeKind, pb.NodeKind, "NODE_KIND_", number, field)


def blob_to_wire(ref: BlobRef) -> pb.BlobRef:
    """Return the message that names the blob."""
    sha256, blake3 = bytes.fromhex(ref.sha256), bytes.fromhex(ref.blake3)
    return pb.BlobRef(sha256=sha256, size_bytes=ref.size_bytes, blake3=blake3)


def blob_from_wire(wire: pb.BlobRef, field: str = "blob") -> BlobRef:
    """Return the blob's name, a SHA-256; another digest is not looked at, so nobody can vouch for it by that."""
    return BlobRef(sha256=_digest_from_wire(wire.sha256, f"{field}.sha256"), size_bytes=_size_from_wire(wire, field))


def model_from_wire(wire: pb.BlobRef, field: str) -> BlobRef:
    """Return the model's name, a SHA-256, with its BLAKE3 if that is told."""
    named = blob_from_wire(wire, field)
    return replace(named, blake3=_digest_from_wire(wire.blake3, f"{field}.blake3")) if wire.blake3 else named


def payload_from_wire(wire: pb.BlobRef, field: str = "blob", *, unnamed: bool = False) -> BlobRef:
    """Return the payload's name, a BLAKE3, or of a node of an earlier version a SHA-256; none where it may be
    ``unnamed``."""
    if wire.blake3 or (unnamed and not wire.sha256):
        digest = _digest_from_wire(wire.blake3, f"{field}.blake3") if wire.blake3 else ""
        return BlobRef(blake3=digest, size_bytes=_size_from_wire(wire, field))
    return blob_from_wire(wire, field)


def _digest_from_wire(digest: bytes, field: str) -> str:
    if len(digest) != 32:
        raise bad_field(field, "32 bytes", f"{len(digest)} bytes")
    return digest.hex()


def _size_from_wire(wire: pb.BlobRef, field: str) -> int:
    if wire.size_bytes > 1 << 62:
        raise bad_field(f"{field}.size_bytes", "a length that a file may have", wire.size_bytes)
    return wire.size_bytes


def needed_blob(
    message: Any, name: str, field: str, read: Callable[[pb.BlobRef, str], BlobRef] = blob_from_wire
) -> BlobRef:
    """Return the blob's name in a field that must be there."""
    if not message.HasField(name):
        raise bad_field(f"{field}.{name}", "present", None)
    return read(getattr(message, name), f"{field}.{name}")


def key_to_wire(key: AssignmentKey) -> pb.AssignmentKey:
    """Return the message for ``key``."""
    return pb.AssignmentKey(session_id=key.session_id, round=key.round, work=pb.Work.Value(f"WORK_{key.work.name}"))


def key_from_wire(wire: pb.AssignmentKey, field: str) -> AssignmentKey:
    """Return the checked key."""
    if wire.round < 1:
        raise bad_field(f"{field}.round", "1 or more", wire.round)
    return AssignmentKey(
        session_id=id_from_wire(wire.session_id, f"{field}.session_id"),
        round=wire.round,
        work=enum_from_wire(Work, pb.Work, "WORK_", wire.work, f"{field}.work"),
    )


def member_to_wire(member: Member) -> pb.Member:
    """Return the message for ``member``."""
    return pb.Member(
        name=member.name,
        node_id=member.node_id,
        kind=kind_to_wire(member.kind),
        parent=member.parent,
        version=text_to_wire(member.version, _DESCRIPTION_LENGTH),
        platform=text_to_wire(member.platform, _DESCRIPTION_LENGTH),
        holding=[key_to_wire(key) for key in member.holding],
        address=member.address,
        capacity=member.capacity,
        tls=member.tls,
        runs=member.runs,
        task_slots=member.task_slots,
        catalogue=bytes.fromhex(member.catalogue),
    )


def member_from_wire(wire: pb.Member, field: str) -> Member:
    """Return the checked member."""
    if len(wire.holding) > _HOLDING:
        raise bad_field(f"{field}.holding", f"at most {_HOLDING:,} keys", f"{len(wire.holding):,} of them")
    if len(wire.runs) > _HOLDING:
        raise bad_field(f"{field}.runs", f"at most {_HOLDING:,} runs", f"{len(wire.runs):,} of them")
    if len(wire.catalogue) not in (0, 32):
        raise bad_field(f"{field}.catalogue", "32 bytes, or none", f"{len(wire.catalogue)} bytes")
    return Member(
        name=name_from_wire(wire.name, f"{field}.name"),
        node_id=id_from_wire(wire.node_id, f"{field}.node_id"),
        kind=kind_from_wire(wire.kind, f"{field}.kind"),
        parent=name_from_wire(wire.parent, f"{field}.parent", optional=True),
        version=text_from_wire(wire.version, f"{field}.version", _DESCRIPTION_LENGTH),
        platform=text_from_wire(wire.platform, f"{field}.platform", _DESCRIPTION_LENGTH),
        holding=tuple(key_from_wire(key, f"{field}.holding") for key in wire.holding),
        address=_address_from_wire(wire.address, f"{field}.address"),
        capacity=wire.capacity,
        tls=wire.tls,
        runs=tuple(id_from_wire(run, f"{field}.runs") for run in wire.runs),
        task_slots=wire.task_slots,
        catalogue=wire.catalogue.hex(),
    )


def failure_to_wire(failure: Failure) -> pb.Failure:
    """Return the message for ``failure``; what is too long in it is cut."""
    return pb.Failure(
        code=failure.code,
        message=text_to_wire(failure.message, MAX_TEXT),
        log_tail=text_to_wire(failure.log_tail, MAX_TEXT),
    )


def failure_from_wire(wire: pb.Failure, field: str) -> Failure:
    """Return the checked failure."""
    return Failure(
        code=id_from_wire(wire.code, f"{field}.code"),
        message=text_from_wire(wire.message, f"{field}.message", MAX_TEXT),
        log_tail=text_from_wire(wire.log_tail, f"{field}.log_tail", MAX_TEXT),
    )


def outcome_to_wire(outcome: Outcome) -> pb.Outcome:
    """Return the message for ``outcome``."""
    return pb.Outcome(
        client=outcome.client,
        failure=None if outcome.failure is None else failure_to_wire(outcome.failure),
        weight=outcome.weight,
        metrics={text_to_wire(name): number for name, number in outcome.metrics.items()},
        extra_json=text_to_wire(outcome.extra_json),
        elapsed_s={text_to_wire(name): number for name, number in outcome.elapsed_s.items()},
    )


def outcome_from_wire(wire: pb.Outcome, field: str) -> Outcome:
    """Return the checked outcome."""
    return Outcome(
        client=name_from_wire(wire.client, f"{field}.client"),
        failure=failure_from_wire(wire.failure, f"{field}.failure") if wire.HasField("failure") else None,
        weight=_weight_from_wire(wire.weight, f"{field}.weight"),
        metrics=numbers_from_wire(wire.metrics, f"{field}.metrics"),
        extra_json=_object_from_wire(wire.extra_json, f"{field}.extra_json"),
        elapsed_s=numbers_from_wire(wire.elapsed_s, f"{field}.elapsed_s"),
    )
