"""The messages of ``Ask``, between protobuf and plain values; the rules are those of :mod:`.messages`."""

from __future__ import annotations

from runnel.common.tasks import MAX_SPEC
from runnel.common.tasks.asks import LookAtTask, NewTask, Site, SitesAsk, SubRun, TaskAnswer, TaskAsk
from runnel.rpc.v1 import uplink_pb2 as pb
from runnel.transport.task_messages import result_from_wire, result_to_wire
from runnel.transport.wire_values import bad_field, id_from_wire, name_from_wire, names_from_wire, text_from_wire

_SITES = 10_000
_STATE = 32
_LONGEST_WAIT_MS = 600_000


def ask_to_wire(ask: TaskAsk) -> pb.TaskAsk:
    """Return the protobuf message for a question."""
    wire = pb.TaskAsk(run_id=ask.run_id, client=ask.client)
    match ask.body:
        case SitesAsk():
            wire.sites.SetInParent()
        case NewTask() as new:
            wire.create.MergeFrom(pb.NewTask(spec=new.spec, sites=new.sites, idempotency_key=new.idempotency_key))
        case LookAtTask() as look:
            wire.look.MergeFrom(pb.LookAtTask(task_id=look.task_id, wait_ms=round(look.wait_s * 1000)))
    return wire


def ask_from_wire(wire: pb.TaskAsk) -> TaskAsk:
    """Return a question, checked; what a new task describes is checked by who answers."""
    return TaskAsk(
        run_id=id_from_wire(wire.run_id, "task_ask.run_id"),
        client=name_from_wire(wire.client, "task_ask.client"),
        body=_body_from_wire(wire),
    )


def _body_from_wire(wire: pb.TaskAsk) -> SitesAsk | NewTask | LookAtTask:
    match wire.WhichOneof("body"):
        case "sites":
            return SitesAsk()
        case "create":
            if not 0 < len(wire.create.sites) <= _SITES:
                raise bad_field("create.sites", f"1 to {_SITES:,} sites", len(wire.create.sites))
            return NewTask(
                spec=text_from_wire(wire.create.spec, "create.spec", MAX_SPEC),
                sites=names_from_wire(wire.create.sites, "create.sites"),
                idempotency_key=id_from_wire(wire.create.idempotency_key, "create.idempotency_key"),
            )
        case "look":
            if wire.look.wait_ms > _LONGEST_WAIT_MS:
                raise bad_field("look.wait_ms", f"at most {_LONGEST_WAIT_MS:,}", wire.look.wait_ms)
            return LookAtTask(task_id=id_from_wire(wire.look.task_id, "look.task_id"), wait_s=wire.look.wait_ms / 1000)
    raise bad_field("task_ask.body", "one of sites, create and look", None)


def answer_to_wire(answer: TaskAnswer) -> pb.TaskAnswer:
    """Return the protobuf message for an answer."""
    return pb.TaskAnswer(
        sites=[pb.Site(name=each.name, attached=each.attached) for each in answer.sites],
        task_id=answer.task_id,
        runs=[
            pb.SubRun(
                run_id=each.run_id,
                site=each.site,
                state=each.state,
                result=None if each.result is None else result_to_wire(each.result),
            )
            for each in answer.runs
        ],
    )


def answer_from_wire(wire: pb.TaskAnswer) -> TaskAnswer:
    """Return an answer, checked."""
    return TaskAnswer(
        sites=tuple(Site(name=name_from_wire(each.name, "sites.name"), attached=each.attached) for each in wire.sites),
        task_id=id_from_wire(wire.task_id, "task_id") if wire.task_id else "",
        runs=tuple(
            SubRun(
                run_id=id_from_wire(each.run_id, "runs.run_id"),
                site=name_from_wire(each.site, "runs.site"),
                state=text_from_wire(each.state, "runs.state", _STATE),
                result=result_from_wire(each.result, "runs.result") if each.HasField("result") else None,
            )
            for each in wire.runs
        ),
    )
