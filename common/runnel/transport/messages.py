"""Between the protobuf messages of ``runnel.rpc.v1`` and the values of :mod:`runnel.common.protocol`.

What comes from the wire is checked field by field, since a node below may send anything: every function here that ends
in ``from_wire`` raises :class:`InvalidInput` naming the field that does not fit, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from runnel.common.errors import InvalidInput
from runnel.common.protocol import (
    MAX_DETAIL,
    MOST_WITHIN_BYTES,
    Assignment,
    BlobRef,
    Cancel,
    CatalogueNews,
    CatalogueWanted,
    Close,
    Downward,
    Drain,
    Gather,
    Heartbeat,
    Hello,
    LogLines,
    PackageSignature,
    PayloadKind,
    Progress,
    Released,
    Report,
    Roster,
    Settled,
    Settlement,
    Stage,
    TaskNews,
    TaskOrder,
    TaskRelease,
    TaskSettled,
    Upward,
    Welcome,
)
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport.task_messages import (
    catalogue_from_wire,
    catalogue_to_wire,
    lines_from_wire,
    lines_to_wire,
    news_from_wire,
    news_to_wire,
    order_from_wire,
    order_to_wire,
    release_from_wire,
    release_to_wire,
    settled_from_wire,
    settled_to_wire,
    wanted_from_wire,
    wanted_to_wire,
)
from runnel.transport.wire_values import (
    bad_field,
    blob_to_wire,
    enum_from_wire,
    id_from_wire,
    key_from_wire,
    key_to_wire,
    member_from_wire,
    member_to_wire,
    model_from_wire,
    name_from_wire,
    names_from_wire,
    needed_blob,
    not_negative,
    outcome_from_wire,
    outcome_to_wire,
    payload_from_wire,
    text_from_wire,
    text_to_wire,
)

_ED25519_KEY_BYTES = 32
_ED25519_SIGNATURE_BYTES = 64
_SIGNATURES = 16


# ---- up


def upward_to_wire(message: Upward) -> pb.Upward:
    """Return the protobuf message for what goes up."""
    match message:
        case Hello():
            below = [member_to_wire(member) for member in message.below]
            # `self` is a keyword argument that Python's own constructor can't take by name.
            hello = pb.Hello(below=below)
            getattr(hello, "self").CopyFrom(member_to_wire(message.member))  # noqa: B009
            return pb.Upward(hello=hello)
        case Heartbeat():
            return pb.Upward(heartbeat=pb.Heartbeat(credential=message.credential))
        case Roster():
            joined = [member_to_wire(member) for member in message.joined]
            return pb.Upward(roster=pb.Roster(joined=joined, left=message.left))
        case Progress():
            return pb.Upward(
                progress=pb.Progress(
                    key=key_to_wire(message.key),
                    order_id=message.order_id,
                    client=message.client,
                    stage=pb.Stage.Value(f"STAGE_{message.stage.name}"),
                    detail=text_to_wire(message.detail, MAX_DETAIL),
                    others=message.others,
                )
            )
        case LogLines():
            lines = lines_to_wire(message.lines)
            return pb.Upward(log=pb.LogLines(key=key_to_wire(message.key), client=message.client, lines=lines))
        case Report():
            return pb.Upward(report=_report_to_wire(message))
        case Released():
            return pb.Upward(released=pb.Released(order_id=message.order_id, clients=message.clients))
        case TaskNews():
            return news_to_wire(message)
        case CatalogueNews():
            return catalogue_to_wire(message)


def _report_to_wire(report: Report) -> pb.Report:
    kind = "UNSPECIFIED" if report.payload_kind is PayloadKind.NONE else report.payload_kind.name
    return pb.Report(
        key=key_to_wire(report.key),
        order_id=report.order_id,
        outcomes=[outcome_to_wire(outcome) for outcome in report.outcomes],
        payload_kind=pb.PayloadKind.Value(f"PAYLOAD_KIND_{kind}"),
        payload=None if report.payload is None else blob_to_wire(report.payload),
        weight=report.weight,
        payload_data=report.payload_data,
    )


def _hello_from_wire(wire: pb.Hello) -> Hello:
    return Hello(
        member=member_from_wire(getattr(wire, "self"), "hello.self"),  # noqa: B009
        below=tuple(member_from_wire(member, "hello.below") for member in wire.below),
    )


def _roster_from_wire(wire: pb.Roster) -> Roster:
    joined = tuple(member_from_wire(member, "roster.joined") for member in wire.joined)
    return Roster(joined=joined, left=names_from_wire(wire.left, "roster.left"))


def _progress_from_wire(wire: pb.Progress) -> Progress:
    return Progress(
        key=key_from_wire(wire.key, "progress.key"),
        order_id=id_from_wire(wire.order_id, "progress.order_id"),
        client=name_from_wire(wire.client, "progress.client"),
        stage=enum_from_wire(Stage, pb.Stage, "STAGE_", wire.stage, "progress.stage"),
        detail=text_from_wire(wire.detail, "progress.detail", MAX_DETAIL),
        others=tuple(name_from_wire(name, "progress.others") for name in wire.others),
    )


def _log_from_wire(wire: pb.LogLines) -> LogLines:
    return LogLines(
        key=key_from_wire(wire.key, "log.key"),
        client=name_from_wire(wire.client, "log.client"),
        lines=lines_from_wire(wire.lines, "log.lines"),
    )


def _report_from_wire(wire: pb.Report) -> Report:
    kind = PayloadKind.NONE
    if wire.payload_kind != pb.PAYLOAD_KIND_UNSPECIFIED:
        kind = enum_from_wire(PayloadKind, pb.PayloadKind, "PAYLOAD_KIND_", wire.payload_kind, "report.payload_kind")
    payload = needed_blob(wire, "payload", "report", payload_from_wire) if kind is not PayloadKind.NONE else None
    if payload is None and wire.HasField("payload"):
        raise bad_field("report.payload_kind", "stated, as there is a payload", wire.payload_kind)
    return Report(
        key=key_from_wire(wire.key, "report.key"),
        order_id=id_from_wire(wire.order_id, "report.order_id"),
        outcomes=tuple(outcome_from_wire(outcome, "report.outcomes") for outcome in wire.outcomes),
        payload_kind=kind,
        payload=payload,
        weight=not_negative(wire.weight, "report.weight"),
        payload_data=_within(wire.payload_data, payload, "report.payload_data"),
    )


def _within(data: bytes, ref: BlobRef | None, field: str) -> bytes:
    """Return the bytes of a blob that came within a message, if they may be those of ``ref``."""
    if data and (ref is None or len(data) != ref.size_bytes or len(data) > MOST_WITHIN_BYTES):
        wanted = "absent" if ref is None else f"as long as announced, and at most {MOST_WITHIN_BYTES:,} bytes"
        raise bad_field(field, wanted, f"{len(data):,} bytes")
    return data


def _released_from_wire(wire: pb.Released) -> Released:
    return Released(
        order_id=id_from_wire(wire.order_id, "released.order_id"),
        clients=names_from_wire(wire.clients, "released.clients"),
    )


_UPWARD: Mapping[str, Callable[[Any], Upward]] = {
    "hello": _hello_from_wire,
    "heartbeat": lambda wire: Heartbeat(credential=wire.credential),
    "roster": _roster_from_wire,
    "progress": _progress_from_wire,
    "log": _log_from_wire,
    "report": _report_from_wire,
    "released": _released_from_wire,
    "task_news": news_from_wire,
    "catalogue_news": catalogue_from_wire,
}


def upward_from_wire(wire: pb.Upward) -> Upward:
    """Return the checked value of a message that came from below.

    Raises:
        InvalidInput: a field does not fit; the error names it.
    """
    return _body(wire, "Upward", _UPWARD)


# ---- down


def downward_to_wire(message: Downward) -> pb.Downward:
    """Return the protobuf message for what goes down."""
    match message:
        case Welcome():
            welcome = pb.Welcome(
                name=message.name,
                heartbeat_ms=_milliseconds(message.heartbeat_s),
                credential_public_key=message.credential_public_key,
                late_digests=message.late_digests,
                blob_port=message.blob_port,
                blob_key=message.blob_key,
            )
            return pb.Downward(welcome=welcome)
        case Assignment():
            return pb.Downward(assignment=_assignment_to_wire(message))
        case Close():
            return pb.Downward(close=pb.Close(order_id=message.order_id))
        case Cancel():
            cancel = pb.Cancel(
                order_id=message.order_id,
                key=None if message.key is None else key_to_wire(message.key),
                clients=message.clients,
                reason=text_to_wire(message.reason),
            )
            return pb.Downward(cancel=cancel)
        case Settled():
            settled = pb.Settled(
                key=key_to_wire(message.key),
                clients=message.clients,
                settlement=pb.Settlement.Value(f"SETTLEMENT_{message.settlement.name}"),
            )
            return pb.Downward(settled=settled)
        case Drain():
            return pb.Downward(drain=pb.Drain(reason=text_to_wire(message.reason)))
        case TaskOrder():
            return order_to_wire(message)
        case TaskSettled():
            return settled_to_wire(message)
        case TaskRelease():
            return release_to_wire(message)
        case CatalogueWanted():
            return wanted_to_wire(message)


def _milliseconds(seconds: float) -> int:
    # 0 stands for "no limit" on the wire, so a limit that is used up must not become 0.
    return max(1, round(seconds * 1000))


def _assignment_to_wire(order: Assignment) -> pb.Assignment:
    return pb.Assignment(
        order_id=order.order_id,
        key=key_to_wire(order.key),
        clients=order.clients,
        package=blob_to_wire(order.package),
        model=blob_to_wire(order.model),
        model_format=order.model_format,
        client_settings=text_to_wire(order.client_settings),
        remaining_ms=0 if order.remaining_s is None else _milliseconds(order.remaining_s),
        gather=pb.Gather.Value(f"GATHER_{order.gather.name}"),
        compression=order.compression,
        model_data=order.model_data,
        payload_within=order.payload_within,
        signatures=[
            pb.PackageSignature(public_key=each.public_key, signature=each.signature) for each in order.signatures
        ],
        organisation=order.organisation,
    )


def _welcome_from_wire(wire: pb.Welcome) -> Welcome:
    if not wire.heartbeat_ms:
        raise bad_field("welcome.heartbeat_ms", "1 or more", wire.heartbeat_ms)
    if len(wire.credential_public_key) not in (0, _ED25519_KEY_BYTES):
        raise bad_field("welcome.credential_public_key", "32 bytes", f"{len(wire.credential_public_key)} bytes")
    return Welcome(
        name=name_from_wire(wire.name, "welcome.name"),
        heartbeat_s=wire.heartbeat_ms / 1000,
        credential_public_key=wire.credential_public_key,
        late_digests=wire.late_digests,
        blob_port=wire.blob_port,
        blob_key=wire.blob_key,
    )


def _assignment_from_wire(wire: pb.Assignment) -> Assignment:
    gather = Gather.SUM
    if wire.gather != pb.GATHER_UNSPECIFIED:
        gather = enum_from_wire(Gather, pb.Gather, "GATHER_", wire.gather, "assignment.gather")
    package = needed_blob(wire, "package", "assignment")
    model = needed_blob(wire, "model", "assignment", model_from_wire)
    return Assignment(
        order_id=id_from_wire(wire.order_id, "assignment.order_id"),
        key=key_from_wire(wire.key, "assignment.key"),
        clients=names_from_wire(wire.clients, "assignment.clients"),
        package=package,
        model=model,
        model_format=id_from_wire(wire.model_format, "assignment.model_format"),
        client_settings=wire.client_settings,
        remaining_s=wire.remaining_ms / 1000 if wire.remaining_ms else None,
        gather=gather,
        compression=id_from_wire(wire.compression, "assignment.compression") if wire.compression else "none",
        model_data=_within(wire.model_data, model, "assignment.model_data"),
        payload_within=min(wire.payload_within, MOST_WITHIN_BYTES),
        signatures=_signatures_from_wire(wire.signatures),
        organisation=text_from_wire(wire.organisation, "assignment.organisation", MAX_DETAIL),
    )


def _signatures_from_wire(wire: Sequence[pb.PackageSignature]) -> tuple[PackageSignature, ...]:
    if len(wire) > _SIGNATURES:
        raise bad_field("assignment.signatures", f"at most {_SIGNATURES}", len(wire))
    for each in wire:
        if (len(each.public_key), len(each.signature)) != (_ED25519_KEY_BYTES, _ED25519_SIGNATURE_BYTES):
            came = f"{len(each.public_key)} and {len(each.signature)} bytes"
            raise bad_field("assignment.signatures", "a key of 32 bytes and a signature of 64", came)
    return tuple(PackageSignature(public_key=each.public_key, signature=each.signature) for each in wire)


def _close_from_wire(wire: pb.Close) -> Close:
    return Close(order_id=id_from_wire(wire.order_id, "close.order_id"))


def _cancel_from_wire(wire: pb.Cancel) -> Cancel:
    key = key_from_wire(wire.key, "cancel.key") if wire.HasField("key") else None
    if key is None and not wire.order_id:
        raise bad_field("cancel", "with an order_id or a key", "neither")
    return Cancel(
        order_id=id_from_wire(wire.order_id, "cancel.order_id") if wire.order_id else "",
        key=key,
        clients=names_from_wire(wire.clients, "cancel.clients"),
        reason=wire.reason,
    )


def _settled_from_wire(wire: pb.Settled) -> Settled:
    return Settled(
        key=key_from_wire(wire.key, "settled.key"),
        clients=names_from_wire(wire.clients, "settled.clients"),
        settlement=enum_from_wire(Settlement, pb.Settlement, "SETTLEMENT_", wire.settlement, "settled.settlement"),
    )


_DOWNWARD: Mapping[str, Callable[[Any], Downward]] = {
    "welcome": _welcome_from_wire,
    "assignment": _assignment_from_wire,
    "close": _close_from_wire,
    "cancel": _cancel_from_wire,
    "settled": _settled_from_wire,
    "drain": lambda wire: Drain(reason=wire.reason),
    "task_order": order_from_wire,
    "task_settled": settled_from_wire,
    "task_release": release_from_wire,
    "catalogue_wanted": wanted_from_wire,
}


def downward_from_wire(wire: pb.Downward) -> Downward:
    """Return the checked value of a message that came from above.

    Raises:
        InvalidInput: a field does not fit; the error names it.
    """
    return _body(wire, "Downward", _DOWNWARD)


M = TypeVar("M")


def _body(wire: pb.Upward | pb.Downward, name: str, readers: Mapping[str, Callable[[Any], M]]) -> M:
    which = wire.WhichOneof("body")
    if which is None:
        raise InvalidInput(
            f"A message {name} without a body that this version knows came.",
            hint="The sender may run a newer version of Runnel.",
            field="body",
        )
    return readers[which](getattr(wire, which))
