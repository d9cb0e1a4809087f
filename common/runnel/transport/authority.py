"""What a node may say: a client speaks for itself alone, a combiner for those below it.

Who speaks is known from the credential. What a message says of others is checked here for what can be known without
looking at who is attached where; the rest is the handler's (is that client below that combiner?).
"""

from __future__ import annotations

from runnel.common.errors import Forbidden, InvalidInput
from runnel.common.protocol import (
    CatalogueNews,
    Hello,
    LogLines,
    NodeKind,
    PayloadKind,
    Progress,
    Released,
    Report,
    Roster,
    Stage,
    TaskNews,
    Upward,
)
from runnel.transport.identity import NodeIdentity

_PUSHED_BY_CLIENTS = frozenset({PayloadKind.NONE, PayloadKind.UPDATE})
_SAID_BY_COMBINERS = frozenset({Stage.COUNTED, Stage.FAILED})


def require_authority(identity: NodeIdentity, message: Upward) -> None:
    """Refuse what ``identity`` has no right to say.

    Raises:
        Forbidden: it speaks for others, or says what only another kind of node may say.
        InvalidInput: a report does not have the outcomes that one of its kind has.
    """
    if identity.kind is NodeKind.CLIENT:
        _require_client(identity.name, message)
    else:
        _require_combiner(identity.name, message)


def _require_client(name: str, message: Upward) -> None:
    match message:
        case Hello(below=below) if below:
            raise _forbidden(name, f"says that {len(below)} nodes are below it", "Only a combiner has any.")
        case Roster() | Released():
            kind = type(message).__name__.lower()
            raise _forbidden(name, f"sent a message {kind} about others", "Only a combiner may.")
        case Progress(clients=clients) if others := sorted({*clients} - {name}):
            raise _forbidden(name, f"speaks for {', '.join(others[:5])}", "A client speaks for itself alone.")
        case LogLines(client=client) | TaskNews(client=client) | CatalogueNews(client=client) if client != name:
            raise _forbidden(name, f"speaks for {client}", "A client speaks for itself alone.")
        case Progress(stage=stage) if stage in _SAID_BY_COMBINERS:
            raise _forbidden(name, f"says that its work is {stage.value}", "That is for those above to say.")
        case Report(outcomes=outcomes, payload_kind=payload_kind):
            others = sorted({outcome.client for outcome in outcomes} - {name})
            if others:
                raise _forbidden(name, f"reports for {', '.join(others[:5])}", "A client reports for itself alone.")
            if len(outcomes) != 1:
                raise InvalidInput(f"The report of a client has one outcome; that of {name} has {len(outcomes)}.")
            if payload_kind not in _PUSHED_BY_CLIENTS:
                what = payload_kind.value.replace("_", " ")
                raise _forbidden(name, f"reports a {what}", "A client pushes its own update and nothing else.")
        case _:
            pass


def _require_combiner(name: str, message: Upward) -> None:
    match message:
        case Hello(below=members) | Roster(joined=members) if any(member.name == name for member in members):
            raise _forbidden(name, "says that it is below itself", "")
        case Report(outcomes=outcomes, payload_kind=payload_kind):
            if len({outcome.client for outcome in outcomes}) < len(outcomes):
                raise InvalidInput(f"The report of {name} names a client twice.", node=name)
            if payload_kind is PayloadKind.UPDATE:
                raise _forbidden(name, "reports a single update", "A combiner reports the weighted sum of updates.")
        case _:
            pass


def _forbidden(name: str, what: str, hint: str) -> Forbidden:
    return Forbidden(f"The node {name} {what}, which it has no right to.", hint=hint, node=name)
