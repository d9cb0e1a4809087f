"""The contract with entry points, as values: what a run of them means, read from the JSON that they leave."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runnel.common.errors import BadOutput, InvalidInput
from runnel.common.json_object import read_object
from runnel.common.protocol import MAX_EXTRA_BYTES, MAX_METRIC_NAME, MAX_METRICS, MAX_WEIGHT

MAX_JSON_BYTES = 1 << 20
WEIGHT_KEY = "num_examples"
_NOT_FINITE = "(not a finite number)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What an entry point says about its work.

    Args:
        num_examples: the weight; finite and greater than 0. None: it said none.
        metrics: finite numbers by name, without ``num_examples``.
        extra: everything else, as JSON values. A number that is not finite is here, as a text that says so.
    """

    num_examples: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """``num_examples``, or 1 if the entry point said none."""
        return 1.0 if self.num_examples is None else self.num_examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run gave: its ``notes``, the wall time of the entry point alone, and its last lines."""

    notes: Notes
    elapsed_s: float
    log_tail: str = ""

    @property
    def weight(self) -> float:
        """See :attr:`Notes.weight`."""
        return self.notes.weight

    @property
    def metrics(self) -> Mapping[str, float]:
        """See :class:`Notes`."""
        return self.notes.metrics

    @property
    def extra(self) -> Mapping[str, Any]:
        """See :class:`Notes`."""
        return self.notes.extra


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult(Result):
    """What a training gave; no metadata file gives empty notes.

    Args:
        update: the model that came out, as a canonical stored ``.npz`` of the global model's schema, finite. The
            receiver owns the file.
    """

    update: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateResult(Result):
    """What a validation gave: the notes are its JSON."""


def read_notes(text: bytes, *, what: str) -> Notes:
    """Read the JSON object that an entry point wrote.

    Numbers (not booleans) are metrics. NaN, infinities and integers beyond float64 are kept in ``extra`` as text, at
    any depth, for what is passed on must be JSON for everybody.

    Args:
        text: at most 1 MiB.
        what: the file for messages: ``"model_out.npz-metadata of train"``.

    Raises:
        BadOutput: it is larger, not a JSON object, its ``num_examples`` is not a finite number greater than 0, or there
            are more numbers, or is more beside them, than a report may carry.
    """
    if len(text) > MAX_JSON_BYTES:
        raise BadOutput(f"{what} should be at most {MAX_JSON_BYTES:,} bytes of JSON but is larger.")
    try:
        value = json.loads(text)
        entries = {_text(key): _portable(item) for key, item in value.items()} if isinstance(value, dict) else None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadOutput(
            f"{what} should be JSON but is not: {reason}.", hint="Write it with json.dump(values, file)."
        ) from error
    if entries is None:
        raise BadOutput(
            f"{what} should be a JSON object but is {_kind(value)}.",
            hint='Write a dictionary, such as {"num_examples": 100, "loss": 0.3}.',
        )
    num_examples = _num_examples(entries.pop(WEIGHT_KEY), what) if WEIGHT_KEY in entries else None
    metrics = {key: float(item) for key, item in entries.items() if _is_number(item)}
    extra = {key: item for key, item in entries.items() if key not in metrics}
    _require_room(metrics, extra, what)
    return Notes(num_examples=num_examples, metrics=metrics, extra=extra)


def _require_room(metrics: Mapping[str, float], extra: Mapping[str, Any], what: str) -> None:
    """Require that a report can carry it; those above refuse a larger one."""
    if len(metrics) > MAX_METRICS:
        raise BadOutput(f"{what} has {len(metrics):,} numbers; at most {MAX_METRICS} are reported.")
    if (longest := max(map(len, metrics), default=0)) > MAX_METRIC_NAME:
        raise BadOutput(
            f"{what} has a number whose name is {longest:,} characters long; {MAX_METRIC_NAME} are allowed."
        )
    try:
        read_object(json.dumps(extra), what=f"What is no number in {what}", most_bytes=MAX_EXTRA_BYTES)
    except (InvalidInput, RecursionError) as error:
        raise BadOutput(str(error), hint="Write large results elsewhere; a report carries what people read.") from error


def check_settings(settings_json: str) -> None:
    """Require that ``settings_json`` is a JSON object.

    Raises:
        InvalidInput: it is not.
    """
    try:
        settings = json.loads(settings_json)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"The client settings should be a JSON object but are not JSON: {error}.") from error
    if not isinstance(settings, dict):
        raise InvalidInput(f"The client settings should be a JSON object but are {_kind(settings)}.")


def _num_examples(value: object, what: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MAX_WEIGHT:
        return float(value)
    raise BadOutput(
        f"{WEIGHT_KEY} in {what} should be a finite number greater than 0, at most {MAX_WEIGHT:g}, but is "
        f"{str(value)[:100]!r}.",
        hint="It is the weight of this client's update in the mean; leave it out to weigh all clients the same.",
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(key): _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, str):
        return _text(value)
    if _is_number(value):
        try:
            return value if math.isfinite(value) else f"{value} {_NOT_FINITE}"
        except OverflowError:
            return f"{value} (beyond float64)"
    return value


def _text(value: str) -> str:
    """Replace lone surrogates, which JSON can escape but no UTF-8 text can hold."""
    return value.encode("utf-8", "replace").decode()


def _kind(value: object) -> str:
    names = {list: "an array", str: "a text", bool: "a boolean", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
