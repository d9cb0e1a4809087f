"""Questions of containers: every value comes back as it went, and nothing odd gets in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.common.errors import InvalidInput
from runnel.common.protocol import BlobRef, Failure, ResultFile, RunResult
from runnel.common.tasks.asks import LookAtTask, NewTask, Site, SitesAsk, SubRun, TaskAnswer, TaskAsk
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport.ask_messages import answer_from_wire, answer_to_wire, ask_from_wire, ask_to_wire

pytestmark = pytest.mark.unit

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
ids = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
waits = st.integers(0, 600_000).map(lambda ms: ms / 1000)
blobs = st.builds(
    BlobRef, sha256=st.binary(min_size=32, max_size=32).map(bytes.hex), size_bytes=st.integers(0, 1 << 50)
)
files = st.lists(
    st.builds(ResultFile, name=names, media_type=texts, blob=blobs), max_size=3, unique_by=lambda f: f.name
)
results = st.builds(
    RunResult,
    failure=st.none() | st.builds(Failure, code=ids, message=texts, log_tail=texts),
    exit_code=st.none() | st.integers(-1, 255),
    files=files.map(tuple),
    image_digest=texts,
    attempt=st.integers(1, 9),
)
bodies = (
    st.just(SitesAsk())
    | st.builds(NewTask, spec=texts, sites=st.lists(names, min_size=1, max_size=3).map(tuple), idempotency_key=ids)
    | st.builds(LookAtTask, task_id=ids, wait_s=waits)
)


@given(st.builds(TaskAsk, run_id=ids, client=names, body=bodies))
def test_a_question_comes_back_as_it_went(ask: TaskAsk) -> None:
    assert ask_from_wire(pb.TaskAsk.FromString(ask_to_wire(ask).SerializeToString())) == ask


@given(
    st.builds(
        TaskAnswer,
        sites=st.lists(st.builds(Site, name=names, attached=st.booleans()), max_size=3).map(tuple),
        task_id=st.just("") | ids,
        runs=st.lists(
            st.builds(SubRun, run_id=ids, site=names, state=texts.map(lambda t: t[:32]), result=st.none() | results),
            max_size=3,
        ).map(tuple),
    )
)
def test_an_answer_comes_back_as_it_went(answer: TaskAnswer) -> None:
    assert answer_from_wire(pb.TaskAnswer.FromString(answer_to_wire(answer).SerializeToString())) == answer


@pytest.mark.parametrize(
    ("wire", "field"),
    [
        (pb.TaskAsk(run_id="", client="a", sites=pb.SitesAsk()), "run_id"),
        (pb.TaskAsk(run_id="run-1", client="../a", sites=pb.SitesAsk()), "client"),
        (pb.TaskAsk(run_id="run-1", client="a"), "body"),
        (pb.TaskAsk(run_id="run-1", client="a", create=pb.NewTask(spec="{}", idempotency_key="k")), "create.sites"),
        (pb.TaskAsk(run_id="run-1", client="a", create=pb.NewTask(spec="{}", sites=["b"])), "idempotency_key"),
        (
            pb.TaskAsk(run_id="run-1", client="a", look=pb.LookAtTask(task_id="tsk-1", wait_ms=1 << 40)),
            "look.wait_ms",
        ),
    ],
)
def test_what_is_no_question_is_refused_by_its_field(wire: pb.TaskAsk, field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        ask_from_wire(wire)
