"""Everything that can go wrong, as one tree of typed errors.

An error says what was expected, what came, from whom and what to do. It survives the wire: ``as_wire`` on one side,
``from_wire`` on the other, so that a caller catches the same class that the callee raised. Which gRPC and HTTP status
a class maps to is one table, in :mod:`runnel.transport.status`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class RunnelError(Exception):
    """Base of all errors of this distribution.

    Args:
        message: one or two sentences: what was expected, what came, from whom.
        hint: what the reader can do about it, as a sentence; may be empty.
        fields: identifiers and values for logs and machines (``client="hospital-a"``). Never secrets.

    The class attribute ``code`` is stable and names the class on the wire, in JSON and in reports.
    """

    code: ClassVar[str] = "internal"
    _classes: ClassVar[dict[str, type[RunnelError]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if RunnelError._classes.setdefault(cls.code, cls) is not cls:
            raise TypeError(f"two errors with the code {cls.code!r}: {cls} and {RunnelError._classes[cls.code]}")

    def __init__(self, message: str, *, hint: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields: dict[str, Any] = fields

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def as_wire(self) -> dict[str, Any]:
        """Return a JSON-ready mapping from which :meth:`from_wire` makes an equal error."""
        fields = {
            k: v if isinstance(v, (str, int, float, bool, type(None))) else str(v) for k, v in self.fields.items()
        }
        return {"code": self.code, "message": self.message, "hint": self.hint, "fields": fields}

    @staticmethod
    def from_wire(wire: Mapping[str, Any]) -> RunnelError:
        """Make the error that ``wire`` describes; an unknown code gives a plain :class:`RunnelError`."""
        kind = RunnelError._classes.get(str(wire.get("code", "")), RunnelError)
        fields = wire.get("fields")
        extra = {str(k): v for k, v in fields.items()} if isinstance(fields, Mapping) else {}
        extra.pop("message", None)
        extra.pop("hint", None)
        return kind(str(wire.get("message", "")), hint=str(wire.get("hint", "")), **extra)


class InvalidInput(RunnelError):
    """A value that a person or a node gave does not fit what is documented."""

    code = "invalid_input"


class BadSettings(InvalidInput):
    """A setting is unknown or has a bad value; the message names key, value and where it was set."""

    code = "bad_settings"


class BadModel(InvalidInput):
    """A model file is malformed, or its names, shapes, dtypes or numbers are not those wanted."""

    code = "bad_model"


class BadPackage(InvalidInput):
    """A compute package lacks what it needs, or its manifest is wrong."""

    code = "bad_package"


class BadQuery(InvalidInput):
    """A selection of data can't be read, or asks for more than to read tables; the message says what and where."""

    code = "bad_query"


class Unsupported(RunnelError):
    """What was asked for is part of an interface, and not of this implementation of it."""

    code = "unsupported"


class UnknownData(InvalidInput):
    """A selection names a database, table or field that is not there for it; the message says what there is."""

    code = "unknown_data"


class HostileArchive(BadPackage):
    """An archive has a member that would leave its folder, is no file or folder, or is too large; it is named."""

    code = "hostile_archive"


class BadOutput(RunnelError):
    """An entry point ended without the output that its contract asks for."""

    code = "bad_output"


class EntryPointFailed(RunnelError):
    """An entry point ended with a status other than 0."""

    code = "exit_status"


class EntryPointTimeout(RunnelError):
    """An entry point was still running when its time was over."""

    code = "timeout"


class ServerFunctionFailed(RunnelError):
    """A package's function for the server ended with an error, took too long, or returned what can't be used."""

    code = "server_function_failed"


class EnvironmentFailed(RunnelError):
    """The Python environment of a package could not be built; the message carries the installer's."""

    code = "environment"


class ImageUnavailable(RunnelError):
    """The image of a task can't be had at a site; the message carries the engine's."""

    code = "image"


class TooManyAttempts(RunnelError):
    """The client of a site ended in the midst of a run again and again."""

    code = "too_many_attempts"


class Expired(RunnelError):
    """A run had not begun by the time that its task gave."""

    code = "expired"


class ResultsBlocked(RunnelError):
    """Somebody at the site looked at the results of a run and does not let them leave."""

    code = "results_blocked"


class LimitReached(RunnelError):
    """A run of a task took all of something that its site gives; ``limit`` of its fields names it."""

    code = "limit"


class NoEngine(RunnelError):
    """A site has no container engine for the runs of tasks."""

    code = "no_engine"


class NotFound(RunnelError):
    """What was named does not exist (any more)."""

    code = "not_found"


class Gone(NotFound):
    """What was named was here, and was removed on purpose; the message tells when and why."""

    code = "gone"


class Conflict(RunnelError):
    """The name is taken, or the same key was used for something else."""

    code = "conflict"


class IllegalState(RunnelError):
    """The operation does not fit the present state; the message tells the state and what would fit."""

    code = "illegal_state"


class NotEnoughClients(IllegalState):
    """A round ended with fewer updates than the session's ``min_clients``."""

    code = "not_enough_clients"


class EmptyAggregate(IllegalState):
    """A mean of nothing, or of weights that sum to zero, was asked for."""

    code = "empty_aggregate"


class Unauthenticated(RunnelError):
    """No token or credential, or one that is unknown, expired or revoked."""

    code = "unauthenticated"


class Forbidden(RunnelError):
    """The token or credential is good but its role does not allow this."""

    code = "forbidden"


class ServerFunctionsRefused(Forbidden):
    """The reducer does not run functions of packages, or not of this one; the message tells which rule says so."""

    code = "server_functions_refused"


class TooLarge(RunnelError):
    """Something is larger than its stated limit."""

    code = "too_large"


class CapacityExceeded(RunnelError):
    """There is no room for one more; trying elsewhere or later may help."""

    code = "capacity_exceeded"


class StorageFull(RunnelError):
    """The disk has no room for a file; the message names the folder."""

    code = "storage_full"


class CorruptData(RunnelError):
    """Length or digest of something transferred is not what was announced."""

    code = "corrupt_data"


class Unreachable(RunnelError):
    """A peer does not answer; trying again may help."""

    code = "unreachable"


class DeadlineExceeded(RunnelError):
    """An operation did not end in the time given."""

    code = "deadline_exceeded"


class SiteWaits(RunnelError):
    """A site does not take the work now, and will say when it does."""

    code = "site_waits"


class AwaitingApproval(SiteWaits):
    """Somebody at the site has to approve the package before it runs there."""

    code = "awaiting_approval"


class OutsideHours(SiteWaits):
    """The site takes no work at this time; the message tells when it does."""

    code = "outside_hours"


class PolicyRefused(RunnelError):
    """The policy of the site does not let the package run; the message names the rule."""

    code = "policy_refused"


class TooFewRows(PolicyRefused):
    """A selection has fewer rows than the site gives out; nothing is given, and how many there are is not told."""

    code = "too_few_rows"


class QueryFailed(RunnelError):
    """A database could not answer; what it said about it stays at the site, because it may quote the data."""

    code = "query_failed"


class Cancelled(RunnelError):
    """The work was called off by the network or by the site."""

    code = "cancelled"


def error_codes() -> frozenset[str]:
    """Return the codes of all errors of this module."""
    return frozenset(
        each.code for each in globals().values() if isinstance(each, type) and issubclass(each, RunnelError)
    )
