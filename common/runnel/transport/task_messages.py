"""The messages about runs of tasks, between protobuf and plain values; the rules are those of :mod:`.messages`."""

from __future__ import annotations

from collections.abc import Sequence

from runnel.common.catalogue import MAX_CATALOGUE_BYTES
from runnel.common.protocol import (
    ENDED,
    MAX_DETAIL,
    MAX_LINE,
    CatalogueNews,
    CatalogueWanted,
    LogLine,
    ResultFile,
    RunResult,
    RunState,
    TaskNews,
    TaskOrder,
    TaskRelease,
    TaskSettled,
)
from runnel.common.tasks import MAX_SPEC
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport.wire_values import (
    bad_field,
    blob_to_wire,
    enum_from_wire,
    failure_from_wire,
    failure_to_wire,
    id_from_wire,
    name_from_wire,
    needed_blob,
    numbers_from_wire,
    text_from_wire,
    text_to_wire,
)

_FILES = 256
_LAST_MOMENT_MS = 253_402_300_799_000  # the end of the year 9999, the last that a date can tell


def lines_to_wire(lines: Sequence[LogLine]) -> list[pb.LogLine]:
    """Return the messages for lines of a log."""
    return [pb.LogLine(at_ms=each.at_ms, stream=each.stream, text=text_to_wire(each.text, MAX_LINE)) for each in lines]


def lines_from_wire(lines: Sequence[pb.LogLine], field: str) -> tuple[LogLine, ...]:
    """Return the checked lines of a log."""
    for line in lines:
        if line.stream not in ("stdout", "stderr", "runnel"):
            raise bad_field(f"{field}.stream", "stdout, stderr or runnel", line.stream)
        if line.at_ms > _LAST_MOMENT_MS:
            raise bad_field(f"{field}.at_ms", "a time before the year 10000", line.at_ms)
        text_from_wire(line.text, f"{field}.text", MAX_LINE)
    return tuple(LogLine(at_ms=line.at_ms, stream=line.stream, text=line.text) for line in lines)


def result_to_wire(result: RunResult) -> pb.RunResult:
    """Return the message for what became of a run."""
    return pb.RunResult(
        failure=None if result.failure is None else failure_to_wire(result.failure),
        exit_code=result.exit_code,
        files=[
            pb.ResultFile(name=each.name, media_type=each.media_type, blob=blob_to_wire(each.blob))
            for each in result.files
        ],
        elapsed_s=dict(result.elapsed_s),
        image_digest=text_to_wire(result.image_digest, MAX_DETAIL),
        attempt=result.attempt,
    )


def result_from_wire(wire: pb.RunResult, field: str) -> RunResult:
    """Return what became of a run, checked."""
    if len(wire.files) > _FILES:
        raise bad_field(f"{field}.files", f"at most {_FILES}", len(wire.files))
    files = tuple(
        ResultFile(
            name=name_from_wire(each.name, f"{field}.files.name"),
            media_type=text_from_wire(each.media_type, f"{field}.files.media_type", 200),
            blob=needed_blob(each, "blob", f"{field}.files"),
        )
        for each in wire.files
    )
    if len({each.name for each in files}) != len(files):
        raise bad_field(f"{field}.files.name", "different from each other", sorted(each.name for each in files))
    return RunResult(
        failure=failure_from_wire(wire.failure, f"{field}.failure") if wire.HasField("failure") else None,
        exit_code=wire.exit_code if wire.HasField("exit_code") else None,
        files=files,
        elapsed_s=numbers_from_wire(wire.elapsed_s, f"{field}.elapsed_s"),
        image_digest=text_from_wire(wire.image_digest, f"{field}.image_digest", MAX_DETAIL),
        attempt=wire.attempt or 1,
    )


def news_to_wire(news: TaskNews) -> pb.Upward:
    """Return the protobuf message for how far a run is."""
    return pb.Upward(
        task_news=pb.TaskNews(
            run_id=news.run_id,
            client=news.client,
            state=pb.RunState.Value(f"RUN_STATE_{news.state.name}"),
            detail=text_to_wire(news.detail, MAX_DETAIL),
            result=None if news.result is None else result_to_wire(news.result),
            lines=lines_to_wire(news.lines),
        )
    )


def news_from_wire(wire: pb.TaskNews) -> TaskNews:
    """Return how far a run is, checked."""
    state = enum_from_wire(RunState, pb.RunState, "RUN_STATE_", wire.state, "task_news.state")
    if wire.HasField("result") != (state in ENDED):
        raise bad_field("task_news.result", "there when the run has ended, and only then", state.value)
    result = result_from_wire(wire.result, "task_news.result") if wire.HasField("result") else None
    if result is not None and (result.failure is None) != (state is RunState.DONE):
        raise bad_field("task_news.result.failure", "absent when the run is done, and only then", state.value)
    return TaskNews(
        run_id=id_from_wire(wire.run_id, "task_news.run_id"),
        client=name_from_wire(wire.client, "task_news.client"),
        state=state,
        detail=text_from_wire(wire.detail, "task_news.detail", MAX_DETAIL),
        result=result,
        lines=lines_from_wire(wire.lines, "task_news.lines"),
    )


def order_to_wire(order: TaskOrder) -> pb.Downward:
    """Return the protobuf message that gives a client a run."""
    return pb.Downward(
        task_order=pb.TaskOrder(
            run_id=order.run_id,
            client=order.client,
            task_id=order.task_id,
            organisation=order.organisation,
            user=text_to_wire(order.user, MAX_DETAIL),
            spec=text_to_wire(order.spec),
            expires_at_ms=order.expires_at_ms or 0,
            parent_run=order.parent_run,
        )
    )


def order_from_wire(wire: pb.TaskOrder) -> TaskOrder:
    """Return a run for a client; what it describes is checked by who carries it out."""
    if wire.expires_at_ms > _LAST_MOMENT_MS:
        raise bad_field("task_order.expires_at_ms", "a time before the year 10000", wire.expires_at_ms)
    return TaskOrder(
        run_id=id_from_wire(wire.run_id, "task_order.run_id"),
        client=name_from_wire(wire.client, "task_order.client"),
        task_id=id_from_wire(wire.task_id, "task_order.task_id"),
        organisation=text_from_wire(wire.organisation, "task_order.organisation", MAX_DETAIL),
        user=text_from_wire(wire.user, "task_order.user", MAX_DETAIL),
        spec=text_from_wire(wire.spec, "task_order.spec", MAX_SPEC),
        expires_at_ms=wire.expires_at_ms or None,
        parent_run=id_from_wire(wire.parent_run, "task_order.parent_run") if wire.parent_run else "",
    )


def settled_to_wire(settled: TaskSettled) -> pb.Downward:
    """Return the protobuf message that a run is over."""
    return pb.Downward(
        task_settled=pb.TaskSettled(
            run_id=settled.run_id,
            client=settled.client,
            cancelled=settled.cancelled,
            reason=text_to_wire(settled.reason, MAX_DETAIL),
        )
    )


def settled_from_wire(wire: pb.TaskSettled) -> TaskSettled:
    """Return that a run is over."""
    return TaskSettled(
        run_id=id_from_wire(wire.run_id, "task_settled.run_id"),
        client=name_from_wire(wire.client, "task_settled.client"),
        cancelled=wire.cancelled,
        reason=text_from_wire(wire.reason, "task_settled.reason", MAX_DETAIL),
    )


def release_to_wire(release: TaskRelease) -> pb.Downward:
    """Return the protobuf message for what somebody decides about a run's results."""
    return pb.Downward(
        task_release=pb.TaskRelease(
            run_id=release.run_id,
            client=release.client,
            release=release.release,
            user=text_to_wire(release.user, MAX_DETAIL),
            reason=text_to_wire(release.reason, MAX_DETAIL),
        )
    )


def release_from_wire(wire: pb.TaskRelease) -> TaskRelease:
    """Return what somebody decides about a run's results."""
    return TaskRelease(
        run_id=id_from_wire(wire.run_id, "task_release.run_id"),
        client=name_from_wire(wire.client, "task_release.client"),
        release=wire.release,
        user=text_from_wire(wire.user, "task_release.user", MAX_DETAIL),
        reason=text_from_wire(wire.reason, "task_release.reason", MAX_DETAIL),
    )


def catalogue_to_wire(news: CatalogueNews) -> pb.Upward:
    """Return the message that says what a client publishes of its data."""
    return pb.Upward(catalogue_news=pb.CatalogueNews(client=news.client, document=news.document))


def catalogue_from_wire(wire: pb.CatalogueNews) -> CatalogueNews:
    """Return what a client publishes; the document itself is not looked into."""
    client = name_from_wire(wire.client, "catalogue_news.client")
    if (size := len(wire.document.encode())) > MAX_CATALOGUE_BYTES:
        raise bad_field(
            "catalogue_news.document", f"a document of at most {MAX_CATALOGUE_BYTES:,} bytes", f"one of {size:,}"
        )
    return CatalogueNews(client=client, document=wire.document)


def wanted_to_wire(wanted: CatalogueWanted) -> pb.Downward:
    """Return the message that asks a client what it publishes."""
    return pb.Downward(catalogue_wanted=pb.CatalogueWanted(client=wanted.client))


def wanted_from_wire(wire: pb.CatalogueWanted) -> CatalogueWanted:
    """Return which client is asked."""
    return CatalogueWanted(client=name_from_wire(wire.client, "catalogue_wanted.client"))
