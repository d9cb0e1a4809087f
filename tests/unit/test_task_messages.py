"""Messages about runs: every value comes back as it went, and nothing odd gets in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.catalogue import MAX_CATALOGUE_BYTES
from runnel.common.errors import Forbidden, InvalidInput
from runnel.common.protocol import (
    ENDED,
    MAX_DETAIL,
    BlobRef,
    CatalogueNews,
    CatalogueWanted,
    Downward,
    Failure,
    Hello,
    LogLine,
    Member,
    NodeKind,
    ResultFile,
    RunResult,
    RunState,
    TaskNews,
    TaskOrder,
    TaskRelease,
    TaskSettled,
    Upward,
)
from runnel.common.tasks import MAX_SPEC
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport import NodeIdentity
from runnel.transport.authority import require_authority
from runnel.transport.messages import downward_from_wire, downward_to_wire, upward_from_wire, upward_to_wire

pytestmark = pytest.mark.unit

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
blobs = st.builds(
    BlobRef, sha256=st.binary(min_size=32, max_size=32).map(bytes.hex), size_bytes=st.integers(0, 1 << 50)
)
failures = st.builds(Failure, code=ids, message=texts, log_tail=texts)
results = st.builds(
    RunResult,
    failure=st.none(),
    exit_code=st.none() | st.integers(-(1 << 31), (1 << 31) - 1),
    files=st.lists(
        st.builds(ResultFile, name=names, media_type=texts, blob=blobs), max_size=3, unique_by=lambda file: file.name
    ).map(tuple),
    elapsed_s=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    image_digest=texts,
    attempt=st.integers(1, (1 << 32) - 1),
)
failed = st.builds(RunResult, failure=failures, exit_code=st.none() | st.just(137))
lines = st.lists(
    st.builds(
        LogLine,
        at_ms=st.integers(0, 253_402_300_799_000),
        stream=st.sampled_from(["stdout", "stderr", "runnel"]),
        text=texts,
    ),
    max_size=2,
).map(tuple)
said_by_clients = [state for state in RunState if state not in {RunState.QUEUED, RunState.CANCELLED}]
upward: st.SearchStrategy[Upward] = st.one_of(
    st.builds(
        TaskNews,
        run_id=ids,
        client=names,
        state=st.sampled_from([state for state in said_by_clients if state not in ENDED]),
        detail=texts,
        lines=lines,
    ),
    st.builds(TaskNews, run_id=ids, client=names, state=st.just(RunState.DONE), result=results, lines=lines),
    st.builds(
        TaskNews,
        run_id=ids,
        client=names,
        state=st.sampled_from([RunState.FAILED, RunState.REJECTED]),
        result=failed,
    ),
    st.builds(
        Hello,
        member=st.builds(
            Member,
            name=names,
            node_id=ids,
            kind=st.sampled_from(NodeKind),
            runs=st.lists(ids, max_size=3).map(tuple),
            task_slots=st.integers(0, (1 << 32) - 1),
            catalogue=st.just("") | st.binary(min_size=32, max_size=32).map(bytes.hex),
        ),
    ),
    st.builds(CatalogueNews, client=names, document=texts),
)
downward: st.SearchStrategy[Downward] = st.one_of(
    st.builds(
        TaskOrder,
        run_id=ids,
        client=names,
        task_id=ids,
        organisation=texts,
        user=texts,
        spec=texts,
        expires_at_ms=st.none() | st.integers(1, 253_402_300_799_000),
        parent_run=st.just("") | ids,
    ),
    st.builds(TaskSettled, run_id=ids, client=names, cancelled=st.booleans(), reason=texts),
    st.builds(TaskRelease, run_id=ids, client=names, release=st.booleans(), user=texts, reason=texts),
    st.builds(CatalogueWanted, client=names),
)


@given(upward)
def test_what_goes_up_arrives_as_it_was(message: Upward) -> None:
    assert upward_from_wire(pb.Upward.FromString(upward_to_wire(message).SerializeToString())) == message


@given(downward)
def test_what_goes_down_arrives_as_it_was(message: Downward) -> None:
    assert downward_from_wire(pb.Downward.FromString(downward_to_wire(message).SerializeToString())) == message


@given(upward, st.integers(0, 400), st.binary(max_size=40))
def test_damaged_messages_are_refused_or_read_but_nothing_else(message: Upward, cut: int, junk: bytes) -> None:
    damaged = upward_to_wire(message).SerializeToString()[:cut] + junk
    try:
        upward_from_wire(pb.Upward.FromString(damaged))
    except (InvalidInput, DecodeError):
        return


def _news() -> pb.Upward:
    blob = BlobRef(sha256="00" * 32, size_bytes=1)
    files = (ResultFile(name="stdout", media_type="", blob=blob), ResultFile(name="log", media_type="", blob=blob))
    return upward_to_wire(
        TaskNews(run_id="run-1", client="c", state=RunState.DONE, result=RunResult(exit_code=0, files=files))
    )


@pytest.mark.parametrize(
    ("field", "spoil"),
    [
        ("run_id", lambda news: setattr(news, "run_id", "")),
        ("client", lambda news: setattr(news, "client", "../c")),
        ("state", lambda news: setattr(news, "state", 0)),
        ("state", lambda news: setattr(news, "state", 99)),
        ("result", lambda news: news.ClearField("result")),
        ("result", lambda news: setattr(news, "state", pb.RUN_STATE_RUNNING)),
        ("result.failure", lambda news: setattr(news, "state", pb.RUN_STATE_FAILED)),
        ("result.files.name", lambda news: setattr(news.result.files[1], "name", "stdout")),
        ("result.files.name", lambda news: setattr(news.result.files[1], "name", "../../etc/passwd")),
        ("result.files.blob", lambda news: news.result.files[0].ClearField("blob")),
        ("result.files", lambda news: news.result.files.extend([news.result.files[0]] * 256)),
        ("detail", lambda news: setattr(news, "detail", "x" * (MAX_DETAIL + 1))),
        ("lines.stream", lambda news: news.lines.append(pb.LogLine(stream="stdlog"))),
    ],
)
def test_news_that_do_not_fit_are_refused_by_the_field(field: str, spoil: Callable[[pb.TaskNews], None]) -> None:
    wire = _news()
    upward_from_wire(wire)
    spoil(wire.task_news)
    with pytest.raises(InvalidInput) as caught:
        upward_from_wire(wire)
    assert caught.value.fields["field"] == f"task_news.{field}"


def test_an_order_is_no_larger_than_a_description_may_be() -> None:
    order = pb.TaskOrder(run_id="run-1", client="c", task_id="tsk-1", spec="x" * (MAX_SPEC + 1))
    with pytest.raises(InvalidInput) as caught:
        downward_from_wire(pb.Downward(task_order=order))
    assert caught.value.fields["field"] == "task_order.spec"


def test_a_catalogue_is_no_larger_than_it_may_be_and_its_digest_is_one() -> None:
    news = pb.CatalogueNews(client="c", document="ä" * (MAX_CATALOGUE_BYTES // 2 + 1))
    with pytest.raises(InvalidInput) as caught:
        upward_from_wire(pb.Upward(catalogue_news=news))
    assert caught.value.fields["field"] == "catalogue_news.document"
    hello = upward_to_wire(Hello(member=Member(name="c", node_id="1", kind=NodeKind.CLIENT)))
    getattr(hello.hello, "self").catalogue = b"short"  # noqa: B009
    with pytest.raises(InvalidInput) as caught:
        upward_from_wire(hello)
    assert caught.value.fields["field"] == "hello.self.catalogue"


@pytest.mark.parametrize(
    "news", [TaskNews(run_id="run-1", client="a", state=RunState.RUNNING), CatalogueNews(client="a", document="{}")]
)
def test_a_client_tells_news_of_its_own_alone(news: TaskNews | CatalogueNews) -> None:
    for kind, name in ((NodeKind.CLIENT, "a"), (NodeKind.COMBINER, "m1")):
        require_authority(NodeIdentity(name=name, node_id="1", kind=kind), news)
    with pytest.raises(Forbidden, match="speaks for a"):
        require_authority(NodeIdentity(name="b", node_id="1", kind=NodeKind.CLIENT), news)
