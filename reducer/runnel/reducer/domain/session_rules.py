"""What a session may be asked for: the written forms of its rules, and the checks before it is started."""

from __future__ import annotations

import math
import re

from runnel.common.aggregation import make_strategy
from runnel.common.compression import parse_compression
from runnel.common.errors import InvalidInput
from runnel.compute_package import ServerCode
from runnel.reducer.domain.values import SessionConfig, StopRule

MAX_ROUNDS = 1_000_000
MAX_RANDOM_SEED = 2**63 - 1
MAX_OVER_SELECT = 10.0

_STOP_RULE = re.compile(r"\s*(?P<metric>[^\s<>=!]+)\s*(?P<comparison>[<>=!]+)\s*(?P<threshold>\S+)\s*")
_COMPARISONS = (">=", ">", "<=", "<")


def parse_stop_rule(text: str) -> StopRule:
    """Read ``metric comparison number``, for example ``accuracy>=0.97``; spaces around the comparison are allowed.

    Raises:
        InvalidInput: for anything else; the message tells what came and what is allowed.
    """
    match = _STOP_RULE.fullmatch(text)
    expected = "Write METRIC COMPARISON NUMBER, for example 'accuracy>=0.97' or 'loss<0.1'."
    if match is None:
        raise InvalidInput(f"stop_when: {text!r} is no stop rule.", hint=expected, field="stop_when", got=text)
    comparison = match["comparison"]
    if comparison not in _COMPARISONS:
        raise InvalidInput(
            f"stop_when: the comparison {comparison!r} in {text!r} is none of {', '.join(_COMPARISONS)}.",
            hint=expected,
            field="stop_when",
            got=text,
        )
    threshold = _finite(match["threshold"])
    if threshold is None:
        raise InvalidInput(
            f"stop_when: {match['threshold']!r} in {text!r} is no finite number.",
            hint=expected,
            field="stop_when",
            got=text,
        )
    return StopRule(metric=match["metric"], comparison=comparison, threshold=threshold)


def parse_sample(value: str | float | None) -> float | int | None:
    """Read how many of the attached clients a round asks.

    An integer (or its text) of 1 or more is a count; a number with a decimal point or exponent in (0, 1] is a
    fraction, so ``"1"`` asks one client and ``"1.0"`` asks all. None, and the text ``all``, are all clients.

    Raises:
        InvalidInput: for anything else; the message tells what came and what is allowed.
    """
    number: float | None
    if value is None or value == "all":
        return None
    if isinstance(value, str):
        text = value.strip()
        number = int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else _finite(text)
    else:
        number = None if isinstance(value, bool) or not math.isfinite(value) else value
    if isinstance(number, int) and number >= 1:
        return number
    if isinstance(number, float) and 0.0 < number <= 1.0:
        return number
    raise InvalidInput(
        f"sample: {value!r} is neither a count of clients nor a fraction of them.",
        hint="Give an integer of 1 or more (a count), or a fraction above 0 and up to 1.0, for example 0.5.",
        field="sample",
        got=value,
    )


def check_config(config: SessionConfig) -> None:
    """Refuse a configuration that can't be run, before anything is stored.

    Raises:
        InvalidInput: names the field, what came and what is allowed.
        BadSettings: there is no such strategy, or its options are wrong.
    """
    _in_range("rounds", config.rounds, 1, MAX_ROUNDS)
    _in_range("min_clients", config.min_clients, 1, None)
    _in_range("retries", config.retries, 0, None)
    _in_range("validate_every", config.validate_every, 0, None)
    parse_compression(config.compress)
    _in_range("random_seed", config.random_seed, 0, MAX_RANDOM_SEED)
    _in_range("keep_models", config.keep_models, 0, None)
    if not (math.isfinite(config.round_timeout_s) and config.round_timeout_s > 0):
        raise _refused("round_timeout_s", config.round_timeout_s, "a finite number of seconds above 0")
    for name, option in config.strategy_options.items():
        if not math.isfinite(option):
            raise _refused(f"strategy_options.{name}", option, "a finite number")
    if config.buffer is not None:
        _in_range("buffer", config.buffer, 1, None)
        if config.min_clients > config.buffer:
            raise _refused("min_clients", config.min_clients, f"at most buffer, which is {config.buffer}")
    if config.sample is not None:
        parse_sample(config.sample)
        if isinstance(config.sample, int):
            _check_count(config, config.sample)
    if not 1.0 <= config.over_select <= MAX_OVER_SELECT:
        raise _refused("over_select", config.over_select, f"a factor from 1 to {MAX_OVER_SELECT:g}")
    if config.over_select != 1.0 and (config.sample is None or config.buffer is not None):
        raise _refused("over_select", config.over_select, "given only with a sample, and without a buffer")
    if config.stop_when is not None and config.validate_every == 0:
        raise _refused("stop_when", str(config.stop_when), "given only with validate_every of 1 or more")
    _check_strategy(config)


def check_server_functions(config: SessionConfig, code: ServerCode) -> None:
    """Refuse options that a package with functions for the server leaves nothing to do for.

    Raises:
        InvalidInput: names the option, and the function that takes its place.
    """
    advice = "or start the session with --no-server-functions"
    names = ", ".join(code.functions)
    if make_strategy(config.strategy, config.strategy_options).buffered is not None:
        raise InvalidInput(
            f"strategy: {config.strategy} knows no rounds of clients that a package could begin ({names}).",
            hint=f"Choose another strategy, {advice}.",
            field="strategy",
        )
    if code.aggregator is not None and (config.strategy != "fedavg" or config.strategy_options):
        raise InvalidInput(
            f"strategy: {config.strategy} came, and the package makes the next model itself ({code.aggregator}).",
            hint=f"Leave the strategy and its options away, {advice}.",
            field="strategy",
        )
    if code.selects and config.sample is not None:
        raise InvalidInput(
            f"sample: {config.sample} came, and the package chooses the clients itself (client_selection).",
            hint=f"Leave it away, {advice}.",
            field="sample",
        )


def _check_strategy(config: SessionConfig) -> None:
    strategy = make_strategy(config.strategy, config.strategy_options)
    if strategy.buffered is not None and config.buffer is None:
        raise _refused("buffer", config.buffer, f"given for the strategy {config.strategy}: updates for each model")
    least = strategy.least_updates
    if config.min_clients < least:
        told = ", ".join([config.strategy, *(f"{name}={value:g}" for name, value in config.strategy_options.items())])
        raise _refused("min_clients", config.min_clients, f"{least} or more for the strategy {told}")


def _check_count(config: SessionConfig, count: int) -> None:
    if config.min_clients > count:
        raise _refused("min_clients", config.min_clients, f"at most sample, which is a count of {count}")
    if config.buffer is not None and config.buffer > count:
        raise _refused("buffer", config.buffer, f"at most sample, which is a count of {count}")


def _in_range(name: str, value: int | None, low: int, high: int | None) -> None:
    """Refuse a number beyond the bounds; None, where it may come, is none."""
    if value is None:
        return
    if value < low or (high is not None and value > high):
        allowed = f"an integer of {low} or more" if high is None else f"an integer from {low} to {high}"
        raise _refused(name, value, allowed)


def _refused(name: str, value: object, allowed: str) -> InvalidInput:
    return InvalidInput(f"{name}: {value!r} came; it has to be {allowed}.", field=name, got=value)


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
