"""Structured logs: a constant message and fields, as lines for people or as JSON for machines.

Modules log with ``structlog.get_logger()``; the records of other libraries (standard ``logging``) go the same way.
Nothing is set up at import: the program calls :func:`setup_logs` once.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO, get_args

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from runnel.common.errors import BadSettings

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]

MASK = "***"
_HANDLER = "runnel"
# These say at "info" what only their own developers want to know, or say it for every request.
_QUIET = ("aiosqlite", "alembic", "asyncio", "grpc", "httpcore", "httpx", "sqlalchemy", "uvicorn")
_SECRET_NAME = re.compile(
    r"(token|secrets?|passwords?|passwd|passphrase|authorization|credentials?|cookie|private_?key|api_?key)$"
)
_SECRET_TEXT = re.compile(r"(?i)(?<=bearer )\S+|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|rnl_[0-9a-z]{20,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_IN_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MANY_LINES = ("exception", "stack")


def is_secret_name(name: str) -> bool:
    """Tell whether what is called ``name`` must not be shown: ``token``, ``db-password``, but not ``token_id``."""
    return _SECRET_NAME.search(name.lower().replace("-", "_")) is not None


def mask(value: Any, name: str = "") -> Any:
    """Return ``value`` fit to be shown: what has a secret's name, also inside mappings and lists, becomes ``***``.

    In texts bearer tokens, tokens of this network and the user-info of URLs are masked as well.
    """
    if is_secret_name(name) and value not in (None, ""):
        return MASK
    match value:
        case str():
            return _SECRET_TEXT.sub(MASK, value)
        case Mapping():
            return {key: mask(item, str(key)) for key, item in value.items()}
        case list() | tuple():
            return type(value)(mask(item) for item in value) if type(value) in (list, tuple) else value
        case _:
            return value


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Processor: mask the secrets in all fields."""
    return {name: mask(value, name) for name, value in event.items()}


def show_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Processor for people's formats: write control characters as ``\\x1b``, those inside of lists ``repr`` shows.

    What an entry point or a peer wrote may be part of a field; it must neither fake a line nor steer the terminal.
    """
    for name, value in event.items():
        if isinstance(value, str):
            pattern = _CONTROL_IN_LINES if name in _MANY_LINES else _CONTROL
            event[name] = pattern.sub(lambda found: repr(found.group())[1:-1], value)
    return event


def setup_logs(level: str = "info", format: str = "console", stream: TextIO | None = None) -> None:
    """Send the logs of this process to ``stream``; a second call replaces the first.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``; other libraries are heard from ``warning`` on, or at
            ``debug`` from ``info`` on.
        format: ``console``: coloured lines in a terminal, ``key=value`` lines (logfmt) elsewhere; ``json``: one object
            a line. Times are ISO 8601 in UTC.
        stream: None stands for standard error, so that standard output belongs to a command's result.

    Raises:
        BadSettings: level or format is none of these.
    """
    _one_of("log_level", level, get_args(LogLevel))
    _one_of("log_format", format, get_args(LogFormat))
    stream = sys.stderr if stream is None else stream
    number = logging.getLevelNamesMapping()[level.upper()]
    pretty = format == "console" and stream.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Not cached: a logger that was used before this call must follow it.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.set_name(_HANDLER)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                mask_secrets,
                *_renderers(format, pretty=pretty),
            ],
        )
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == _HANDLER]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.INFO if level == "debug" else logging.WARNING))


def _renderers(format: str, *, pretty: bool) -> list[Processor]:
    if format == "json":
        return [structlog.processors.JSONRenderer()]
    if pretty:
        return [show_controls, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [
        show_controls,
        structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False),
    ]


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadSettings(
            f"{key} is one of {', '.join(allowed)}; {value!r} is not.",
            hint="Choose one of these.",
            key=key,
            value=value,
        )
