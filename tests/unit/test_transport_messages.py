"""Messages: every value comes back as it went, and nothing odd gets in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.errors import InvalidInput
from runnel.common.protocol import (
    MOST_WITHIN_BYTES,
    Assignment,
    AssignmentKey,
    BlobRef,
    Cancel,
    Close,
    Downward,
    Drain,
    Failure,
    Gather,
    Heartbeat,
    Hello,
    LogLine,
    LogLines,
    Member,
    NodeKind,
    Outcome,
    PayloadKind,
    Progress,
    Released,
    Report,
    Roster,
    Settled,
    Settlement,
    Stage,
    Upward,
    Welcome,
    Work,
)
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport.messages import downward_from_wire, downward_to_wire, upward_from_wire, upward_to_wire
from runnel.transport.wire_values import blob_from_wire

pytestmark = pytest.mark.unit

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
weights = st.floats(0, 1e18)
numbers = st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3)
several_names = st.lists(names, max_size=3).map(tuple)
seconds = st.integers(1, 1 << 40).map(lambda ms: ms / 1000)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
blobs = st.builds(BlobRef, sha256=digests, size_bytes=st.integers(0, 1 << 50))
payload_names = st.builds(BlobRef, blake3=digests, size_bytes=st.integers(0, 1 << 50))
keys = st.builds(AssignmentKey, session_id=ids, round=st.integers(1, (1 << 32) - 1), work=st.sampled_from(Work))
members = st.builds(
    Member,
    name=names,
    node_id=ids,
    kind=st.sampled_from(NodeKind),
    parent=st.just("") | names,
    version=texts,
    platform=texts,
    holding=st.lists(keys, max_size=2).map(tuple),
    address=st.sampled_from(["", "127.0.0.1:7500", "combiner.example.org:1", "[::1]:65535"]),
    capacity=st.integers(0, (1 << 32) - 1),
    tls=st.booleans(),
)
outcomes = st.builds(
    Outcome,
    client=names,
    failure=st.none() | st.builds(Failure, code=ids, message=texts, log_tail=texts),
    weight=weights,
    metrics=numbers,
    extra_json=st.just("") | st.dictionaries(texts, texts | st.none() | st.lists(st.integers())).map(json.dumps),
    elapsed_s=numbers,
)
payloads = st.tuples(st.just(PayloadKind.NONE), st.none()) | st.tuples(
    st.sampled_from([PayloadKind.UPDATE, PayloadKind.WEIGHTED_SUM]), payload_names | blobs
)
reports = st.builds(
    lambda key, order_id, outcomes, payload, weight: Report(
        key=key, order_id=order_id, outcomes=outcomes, payload_kind=payload[0], payload=payload[1], weight=weight
    ),
    keys,
    ids,
    st.lists(outcomes, max_size=3).map(tuple),
    payloads,
    weights,
)
lines = st.builds(
    LogLine,
    at_ms=st.integers(0, 253_402_300_799_000),
    stream=st.sampled_from(["stdout", "stderr", "runnel"]),
    text=texts,
)
upward: st.SearchStrategy[Upward] = st.one_of(
    st.builds(Hello, member=members, below=st.lists(members, max_size=2).map(tuple)),
    st.just(Heartbeat()),
    st.builds(Roster, joined=st.lists(members, max_size=2).map(tuple), left=several_names),
    st.builds(
        Progress,
        key=keys,
        order_id=ids,
        client=names,
        stage=st.sampled_from(Stage),
        detail=texts,
        others=st.lists(names, max_size=3).map(tuple),
    ),
    st.builds(LogLines, key=keys, client=names, lines=st.lists(lines, max_size=3).map(tuple)),
    reports,
    st.builds(Released, order_id=ids, clients=several_names),
)
downward: st.SearchStrategy[Downward] = st.one_of(
    st.builds(
        Welcome,
        name=names,
        heartbeat_s=seconds,
        credential_public_key=st.just(b"") | st.binary(min_size=32, max_size=32),
    ),
    st.builds(
        Assignment,
        order_id=ids,
        key=keys,
        clients=several_names,
        package=blobs,
        model=blobs,
        model_format=ids,
        client_settings=texts,
        remaining_s=st.none() | seconds,
        gather=st.sampled_from(Gather),
    ),
    st.builds(Close, order_id=ids),
    st.builds(Cancel, order_id=ids, key=st.none() | keys, clients=several_names, reason=texts),
    st.builds(Cancel, order_id=st.just(""), key=keys, clients=several_names, reason=texts),
    st.builds(Settled, key=keys, clients=several_names, settlement=st.sampled_from(Settlement)),
    st.builds(Drain, reason=texts),
)


@given(upward)
def test_what_goes_up_arrives_as_it_was(message: Upward) -> None:
    assert upward_from_wire(pb.Upward.FromString(upward_to_wire(message).SerializeToString())) == message


@given(downward)
def test_what_goes_down_arrives_as_it_was(message: Downward) -> None:
    assert downward_from_wire(pb.Downward.FromString(downward_to_wire(message).SerializeToString())) == message


@given(message=upward, cut=st.integers(0, 200), junk=st.binary(max_size=30))
def test_damaged_messages_are_refused_or_read_but_nothing_else(message: Upward, cut: int, junk: bytes) -> None:
    """Whatever bytes come: protobuf refuses them, or we do with the error that names a field, or they are a value."""
    data = bytearray(upward_to_wire(message).SerializeToString())
    data[cut : cut + len(junk)] = junk
    try:
        wire = pb.Upward.FromString(bytes(data))
    except DecodeError:
        return
    try:
        value = upward_from_wire(wire)
    except InvalidInput as error:
        named = error.fields["field"]
    else:
        assert upward_from_wire(upward_to_wire(value)) == value
        return
    assert named


@pytest.mark.parametrize("data", [b"x" * 8, b"x" * 10], ids=["short", "long"])
def test_a_payload_within_its_report_is_as_long_as_it_says(data: bytes) -> None:
    wire = _report()
    wire.report.payload_data = b"x" * 9
    came = upward_from_wire(wire)
    assert isinstance(came, Report)
    assert came.payload_data == b"x" * 9
    wire.report.payload_data = data
    with pytest.raises(InvalidInput, match="as long as announced"):
        upward_from_wire(wire)
    wire.report.ClearField("payload")
    wire.report.payload_kind = pb.PAYLOAD_KIND_UNSPECIFIED
    with pytest.raises(InvalidInput, match="absent"):
        upward_from_wire(wire)


def test_nothing_large_comes_within_a_message() -> None:
    wire = _report()
    wire.report.payload.size_bytes = MOST_WITHIN_BYTES + 1
    wire.report.payload_data = bytes(MOST_WITHIN_BYTES + 1)
    with pytest.raises(InvalidInput, match="at most 16,384 bytes"):
        upward_from_wire(wire)


def test_lone_surrogates_of_programs_are_replaced() -> None:
    key = AssignmentKey(session_id="s", round=1, work=Work.TRAIN)
    message = LogLines(key=key, client="c", lines=(LogLine(at_ms=0, stream="stdout", text="a\udc80b"),))
    came = upward_from_wire(upward_to_wire(message))
    assert isinstance(came, LogLines)
    assert came.lines[0].text == "a?b"


def test_time_that_is_used_up_is_not_time_without_limit() -> None:
    order = Assignment(
        order_id="o",
        key=AssignmentKey(session_id="s", round=1, work=Work.TRAIN),
        clients=("c",),
        package=BlobRef(sha256="00" * 32, size_bytes=1),
        model=BlobRef(sha256="00" * 32, size_bytes=1),
        remaining_s=0.0,
    )
    came = downward_from_wire(downward_to_wire(order))
    assert isinstance(came, Assignment)
    assert came.remaining_s == 0.001


def test_a_model_keeps_both_digests_and_a_package_only_the_one_that_signatures_vouch_for() -> None:
    both = BlobRef(sha256="01" * 32, blake3="02" * 32, size_bytes=1)
    order = Assignment(
        order_id="o",
        key=AssignmentKey(session_id="s", round=1, work=Work.TRAIN),
        clients=("c",),
        package=both,
        model=both,
        remaining_s=1.0,
    )
    came = downward_from_wire(downward_to_wire(order))
    assert isinstance(came, Assignment)
    assert (came.model.sha256, came.model.blake3) == (both.sha256, both.blake3)
    assert (came.package.sha256, came.package.blake3) == (both.sha256, "")


def test_a_file_of_a_run_is_named_by_its_sha256_alone() -> None:
    with pytest.raises(InvalidInput, match=r"blob\.sha256"):
        blob_from_wire(pb.BlobRef(blake3=bytes(32), size_bytes=1))


def _report() -> pb.Upward:
    key = AssignmentKey(session_id="s", round=1, work=Work.TRAIN)
    ref = BlobRef(sha256="00" * 32, size_bytes=9)
    report = Report(
        key=key,
        order_id="o",
        outcomes=(Outcome(client="c", failure=Failure(code="timeout", message="m")),),
        payload_kind=PayloadKind.UPDATE,
        payload=ref,
        weight=1.0,
    )
    return upward_to_wire(report)


def _hello() -> pb.Upward:
    return upward_to_wire(Hello(member=Member(name="c", node_id="n", kind=NodeKind.CLIENT)))


def _self(wire: pb.Upward) -> pb.Member:
    member: pb.Member = getattr(wire.hello, "self")  # noqa: B009 - the name of the field
    return member


@pytest.mark.parametrize(
    ("field", "make", "spoil"),
    [
        ("body", pb.Upward, lambda wire: None),
        ("report.key.round", _report, lambda wire: setattr(wire.report.key, "round", 0)),
        ("report.key.work", _report, lambda wire: setattr(wire.report.key, "work", 0)),
        ("report.key.work", _report, lambda wire: setattr(wire.report.key, "work", 77)),
        ("report.key.session_id", _report, lambda wire: setattr(wire.report.key, "session_id", "")),
        ("report.order_id", _report, lambda wire: setattr(wire.report, "order_id", "x" * 129)),
        ("report.order_id", _report, lambda wire: setattr(wire.report, "order_id", "a\nb")),
        ("report.weight", _report, lambda wire: setattr(wire.report, "weight", math.nan)),
        ("report.weight", _report, lambda wire: setattr(wire.report, "weight", -1.0)),
        ("report.outcomes.weight", _report, lambda wire: setattr(wire.report.outcomes[0], "weight", math.inf)),
        ("report.outcomes.client", _report, lambda wire: setattr(wire.report.outcomes[0], "client", "../c")),
        ("report.outcomes.failure.code", _report, lambda wire: setattr(wire.report.outcomes[0].failure, "code", "")),
        (
            "report.outcomes.metrics['loss']",
            _report,
            lambda wire: wire.report.outcomes[0].metrics.update({"loss": math.nan}),
        ),
        ("report.payload.sha256", _report, lambda wire: setattr(wire.report.payload, "sha256", b"short")),
        ("report.payload.blake3", _report, lambda wire: setattr(wire.report.payload, "blake3", b"short")),
        ("report.payload.size_bytes", _report, lambda wire: setattr(wire.report.payload, "size_bytes", 1 << 63)),
        ("report.payload", _report, lambda wire: wire.report.ClearField("payload")),
        ("report.payload_kind", _report, lambda wire: setattr(wire.report, "payload_kind", 0)),
        ("report.payload_kind", _report, lambda wire: setattr(wire.report, "payload_kind", 9)),
        ("hello.self.name", _hello, lambda wire: setattr(_self(wire), "name", "")),
        ("hello.self.name", _hello, lambda wire: setattr(_self(wire), "name", "a b")),
        ("hello.self.name", _hello, lambda wire: setattr(_self(wire), "name", "a" * 65)),
        ("hello.self.node_id", _hello, lambda wire: setattr(_self(wire), "node_id", "")),
        ("hello.self.kind", _hello, lambda wire: setattr(_self(wire), "kind", 0)),
        ("hello.self.parent", _hello, lambda wire: setattr(_self(wire), "parent", "a/b")),
        (
            "hello.below.name",
            _hello,
            lambda wire: wire.hello.below.append(pb.Member(node_id="n", kind=pb.NODE_KIND_CLIENT)),
        ),
    ],
)
def test_the_field_that_does_not_fit_is_named(
    field: str, make: Callable[[], pb.Upward], spoil: Callable[[pb.Upward], None]
) -> None:
    wire = make()
    if field != "body":
        upward_from_wire(wire)
    spoil(wire)
    with pytest.raises(InvalidInput) as caught:
        upward_from_wire(wire)
    assert caught.value.fields["field"] == field


@pytest.mark.parametrize(
    ("field", "wire"),
    [
        ("body", pb.Downward()),
        ("welcome.heartbeat_ms", pb.Downward(welcome=pb.Welcome(name="r"))),
        (
            "welcome.credential_public_key",
            pb.Downward(welcome=pb.Welcome(name="r", heartbeat_ms=1, credential_public_key=b"x")),
        ),
        ("cancel", pb.Downward(cancel=pb.Cancel(reason="why"))),
        ("close.order_id", pb.Downward(close=pb.Close())),
        (
            "settled.settlement",
            pb.Downward(settled=pb.Settled(key=pb.AssignmentKey(session_id="s", round=1, work=pb.WORK_TRAIN))),
        ),
        (
            "assignment.package",
            pb.Downward(
                assignment=pb.Assignment(
                    order_id="o", key=pb.AssignmentKey(session_id="s", round=1, work=pb.WORK_TRAIN), model_format="npz"
                )
            ),
        ),
    ],
)
def test_what_comes_from_above_is_checked_too(field: str, wire: pb.Downward) -> None:
    with pytest.raises(InvalidInput) as caught:
        downward_from_wire(wire)
    assert caught.value.fields["field"] == field


def test_a_newer_message_is_refused_not_misread() -> None:
    unknown = pb.Upward.FromString(b"\xfa\x01\x02\x08\x01")  # field 31, which this version does not have
    with pytest.raises(InvalidInput, match="newer version") as caught:
        upward_from_wire(unknown)
    assert caught.value.fields["field"] == "body"


def test_an_order_that_does_not_say_what_to_gather_wants_a_sum() -> None:
    order = Assignment(
        order_id="o",
        key=AssignmentKey(session_id="s", round=1, work=Work.TRAIN),
        clients=("a",),
        package=BlobRef(sha256="0" * 64, size_bytes=1),
        model=BlobRef(sha256="0" * 64, size_bytes=1),
        gather=Gather.UPDATES,
    )
    wire = downward_to_wire(order)
    assert downward_from_wire(wire) == order
    wire.assignment.gather = pb.GATHER_UNSPECIFIED
    came = downward_from_wire(wire)
    assert isinstance(came, Assignment)
    assert came.gather is Gather.SUM
    wire.assignment.gather = 77  # type: ignore[assignment]
    with pytest.raises(InvalidInput, match="gather"):
        downward_from_wire(wire)
