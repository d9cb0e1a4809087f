"""Errors on their way over gRPC and HTTP and back: one table, one interceptor, one inverse."""

from __future__ import annotations

import inspect
import json
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, NoReturn

import grpc
import structlog

from runnel.common import errors
from runnel.common.errors import RunnelError

STATUS: Mapping[type[RunnelError], tuple[grpc.StatusCode, int]] = {
    errors.RunnelError: (grpc.StatusCode.INTERNAL, 500),
    errors.InvalidInput: (grpc.StatusCode.INVALID_ARGUMENT, 422),
    errors.BadSettings: (grpc.StatusCode.INVALID_ARGUMENT, 422),
    errors.BadModel: (grpc.StatusCode.INVALID_ARGUMENT, 422),
    errors.BadPackage: (grpc.StatusCode.INVALID_ARGUMENT, 422),
    errors.BadQuery: (grpc.StatusCode.INVALID_ARGUMENT, 422),
    errors.UnknownData: (grpc.StatusCode.INVALID_ARGUMENT, 422),
    errors.HostileArchive: (grpc.StatusCode.INVALID_ARGUMENT, 422),
    errors.BadOutput: (grpc.StatusCode.FAILED_PRECONDITION, 422),
    errors.EntryPointFailed: (grpc.StatusCode.FAILED_PRECONDITION, 422),
    errors.EntryPointTimeout: (grpc.StatusCode.FAILED_PRECONDITION, 422),
    errors.ServerFunctionFailed: (grpc.StatusCode.FAILED_PRECONDITION, 422),
    errors.EnvironmentFailed: (grpc.StatusCode.FAILED_PRECONDITION, 422),
    errors.ImageUnavailable: (grpc.StatusCode.FAILED_PRECONDITION, 422),
    errors.LimitReached: (grpc.StatusCode.FAILED_PRECONDITION, 422),
    errors.NoEngine: (grpc.StatusCode.FAILED_PRECONDITION, 422),
    errors.TooManyAttempts: (grpc.StatusCode.FAILED_PRECONDITION, 422),
    errors.Expired: (grpc.StatusCode.FAILED_PRECONDITION, 409),
    errors.NotFound: (grpc.StatusCode.NOT_FOUND, 404),
    errors.Gone: (grpc.StatusCode.NOT_FOUND, 410),
    errors.Conflict: (grpc.StatusCode.ALREADY_EXISTS, 409),
    errors.IllegalState: (grpc.StatusCode.FAILED_PRECONDITION, 409),
    errors.NotEnoughClients: (grpc.StatusCode.FAILED_PRECONDITION, 409),
    errors.EmptyAggregate: (grpc.StatusCode.FAILED_PRECONDITION, 409),
    errors.Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, 401),
    errors.Forbidden: (grpc.StatusCode.PERMISSION_DENIED, 403),
    errors.ServerFunctionsRefused: (grpc.StatusCode.PERMISSION_DENIED, 403),
    errors.TooLarge: (grpc.StatusCode.OUT_OF_RANGE, 413),
    errors.CapacityExceeded: (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    errors.StorageFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, 507),
    errors.CorruptData: (grpc.StatusCode.DATA_LOSS, 422),
    errors.Unreachable: (grpc.StatusCode.UNAVAILABLE, 503),
    errors.DeadlineExceeded: (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    errors.SiteWaits: (grpc.StatusCode.FAILED_PRECONDITION, 409),
    errors.AwaitingApproval: (grpc.StatusCode.FAILED_PRECONDITION, 409),
    errors.OutsideHours: (grpc.StatusCode.FAILED_PRECONDITION, 409),
    errors.PolicyRefused: (grpc.StatusCode.PERMISSION_DENIED, 403),
    errors.ResultsBlocked: (grpc.StatusCode.PERMISSION_DENIED, 403),
    errors.TooFewRows: (grpc.StatusCode.PERMISSION_DENIED, 403),
    errors.QueryFailed: (grpc.StatusCode.FAILED_PRECONDITION, 422),
    errors.Cancelled: (grpc.StatusCode.CANCELLED, 409),
    errors.Unsupported: (grpc.StatusCode.UNIMPLEMENTED, 501),
}
"""gRPC code and HTTP status of each class of error; a class that is not listed has those of its nearest base."""

METADATA_KEY = "runnel-error-bin"
"""Trailing metadata with the whole error: JSON of ``RunnelError.as_wire()``, at most 4 KiB."""

_METADATA_LIMIT_BYTES = 4096
_DETAILS_LIMIT = 300  # characters; percent-encoded they may triple, and all metadata of a call share 8 KiB

_BY_CODE: Mapping[grpc.StatusCode, type[RunnelError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInput,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: errors.IllegalState,
    grpc.StatusCode.ABORTED: errors.IllegalState,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Forbidden,
    grpc.StatusCode.OUT_OF_RANGE: errors.TooLarge,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.CapacityExceeded,
    grpc.StatusCode.DATA_LOSS: errors.CorruptData,
    grpc.StatusCode.UNAVAILABLE: errors.Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    # No error of ours: the peer's process let go of the call, as it does when it stops.
    grpc.StatusCode.CANCELLED: errors.Unreachable,
    grpc.StatusCode.UNIMPLEMENTED: errors.IllegalState,
}

# What gRPC says of a message written in the moment in which the stream ends: the status that the peer sent is lost
# then, and only asking again tells it.
_WRITE_FAILED = "Internal error from Core"

_HINTS: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: "Is it running, is the address right, and does it speak TLS exactly if you do?",
    grpc.StatusCode.UNIMPLEMENTED: "What answers there is not the part of Runnel that was looked for; "
    "a combiner lets nodes join only with --relay-joins.",
}


_TLS_HINTS: Mapping[str, str] = {
    "CERTIFICATE_VERIFY_FAILED": "Its certificate is not signed by an authority that is trusted here, or is for "
    "another host: give the network's authority by --tls-ca (people: --ca-file).",
    "WRONG_VERSION_NUMBER": "It does not speak TLS, and this side does.",
}
"""What to do, by words that OpenSSL and BoringSSL have in the error of a handshake."""


def status_of(error: RunnelError | type[RunnelError]) -> tuple[grpc.StatusCode, int]:
    """Return the gRPC code and the HTTP status for an error or a class of errors."""
    kind = error if isinstance(error, type) else type(error)
    return next(STATUS[base] for base in kind.__mro__ if base in STATUS)


def problem_of(error: RunnelError) -> dict[str, Any]:
    """Return the body of an HTTP answer (RFC 9457, ``application/problem+json``); its ``status`` is the HTTP status.

    Beyond the members of the standard it has ``code``, ``hint`` and ``fields``, as ``RunnelError.as_wire``.
    """
    wire = error.as_wire()
    return {
        "type": f"urn:runnel:error:{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": status_of(error)[1],
        "detail": wire["message"],
        "code": wire["code"],
        "hint": wire["hint"],
        "fields": wire["fields"],
    }


def error_of_problem(problem: Mapping[str, Any]) -> RunnelError:
    """Return the error that :func:`problem_of` describes."""
    return RunnelError.from_wire({**problem, "message": problem.get("detail", "")})


# ---- the side that is called


def error_wire(error: RunnelError) -> bytes:
    """Return JSON of ``error`` for its caller, at most 4 KiB: shortened if need be, log tails first, then the message.

    :func:`told_error` is its inverse.
    """
    wire = error.as_wire()
    for limit in (None, 1500, 400):
        if limit is not None:
            wire["message"] = str(wire["message"])[:limit]
            wire["hint"] = str(wire["hint"])[:limit]
            wire["fields"] = {
                name[:60]: value[: limit // 4] if isinstance(value, str) else value
                for name, value in list(wire["fields"].items())[:16]
            }
        data = json.dumps(wire, allow_nan=False, default=str).encode()
        if len(data) <= _METADATA_LIMIT_BYTES:
            return data
    return json.dumps({"code": error.code, "message": error.message[:400]}).encode()


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: RunnelError) -> NoReturn:
    """End the call with ``error``."""
    code, _ = status_of(error)
    await context.abort(code, str(error)[:_DETAILS_LIMIT], ((METADATA_KEY, error_wire(error)),))
    raise AssertionError("abort always raises")


Behaviour = Callable[[Any, Any], Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call whose servicer raised with the status of the error, for all four kinds of calls.

    A :class:`RunnelError` goes to the caller as it is. Anything else is a fault of ours: it is logged with its
    traceback under an incident number, and the caller is told only that number. Cancelling passes through.
    """

    def __init__(self) -> None:
        self._log = structlog.get_logger()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one call."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None  # an unknown method: gRPC answers UNIMPLEMENTED
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        behaviour: Behaviour = getattr(handler, "_".join(kind))
        make = getattr(grpc, f"{'_'.join(kind)}_rpc_method_handler")
        wrapped = self._wrap(behaviour, getattr(handler_call_details, "method", ""))
        return make(wrapped, handler.request_deserializer, handler.response_serializer)

    def _wrap(self, behaviour: Behaviour, method: str) -> Behaviour:
        generates = inspect.isasyncgenfunction(behaviour)

        async def guarded(request: Any, context: Any) -> Any:
            try:
                if not generates:
                    return await behaviour(request, context)
                async with aclosing(behaviour(request, context)) as answers:
                    async for answer in answers:
                        await context.write(answer)
            except grpc.aio.AbortError:
                raise
            except RunnelError as error:
                await abort(context, error)
            except grpc.aio.InternalError as error:
                # A write in the moment in which the caller goes; there is nobody left to tell.
                self._log.debug("caller is gone", method=method, detail=str(error))
            except Exception:  # noqa: BLE001 - the last stop before gRPC, which would send its text to the caller
                await abort(context, unexpected(self._log, method=method))
            return None

        return guarded


def unexpected(log: Any, **fields: Any) -> RunnelError:
    """Log the exception being handled, with its traceback; return what others may know of it: a number to ask for."""
    incident = secrets.token_hex(4)
    log.exception("unexpected error", incident=incident, **fields)
    return RunnelError(
        f"An unexpected error happened at the peer (incident {incident}).",
        hint="Its log has the details under that number.",
        incident=incident,
    )


# ---- the side that calls


def told_error(wire: str | bytes, *, peer: str) -> RunnelError:
    """Return the error that the peer raised. Raises ValueError, TypeError or AttributeError if ``wire`` is none."""
    told = RunnelError.from_wire(json.loads(wire))
    if isinstance(told, errors.StorageFull):
        # It names a folder, and of those who read it on its way only this side knows whose folder that is.
        told.message = f"{peer}: {told.message}"
    return told


def from_rpc_error(error: grpc.aio.AioRpcError, *, peer: str) -> RunnelError:
    """Return the error that the peer raised, or the nearest one that says what happened to the call.

    Args:
        error: what gRPC raised.
        peer: who was called, for the message: a name, an address or both.
    """
    for key, value in error.trailing_metadata() or ():
        if key == METADATA_KEY:
            try:
                return told_error(value, peer=peer)
            except (ValueError, TypeError, AttributeError):
                break  # not written by Runnel: the status code says enough
    code = error.code()
    kind = _BY_CODE.get(code, RunnelError)
    details = (error.details() or "").strip()
    if code is grpc.StatusCode.INTERNAL and details.startswith(_WRITE_FAILED):
        kind = errors.Unreachable
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        kind = errors.TooLarge
    said = f": {details}" if details else ""
    hint = next((hint for words, hint in _TLS_HINTS.items() if words in details), _HINTS.get(code, ""))
    return kind(f"{peer} answered {code.name}{said}.", hint=hint, peer=peer, grpc_status=code.name)


@contextmanager
def rpc_errors(peer: str) -> Iterator[None]:
    """Let only errors of :mod:`runnel.common.errors` out of a block that calls ``peer``."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, peer=peer) from error
    except grpc.aio.UsageError as error:
        raise errors.Unreachable(f"The connection to {peer} is closed: {error}.", peer=peer) from error
    except grpc.aio.InternalError as error:  # the same as _WRITE_FAILED, for the half-close
        raise errors.Unreachable(f"The stream to {peer} ended while it was written to.", peer=peer) from error
