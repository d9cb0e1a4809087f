"""The strategies of a session by name: what each is, its options, and whether it needs every single update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from runnel.common.aggregation.buffered import FedBuff
from runnel.common.aggregation.coordinate_rules import Median, TrimmedMean
from runnel.common.aggregation.distance_rules import Bulyan, Krum, MultiKrum
from runnel.common.aggregation.norm_rules import GeometricMedian, NormClipping
from runnel.common.aggregation.optimizers import OPTIMIZERS, FedAvg, ServerOptimizer, make_optimizer
from runnel.common.aggregation.robust import RobustRule
from runnel.common.errors import BadSettings

_RULES: Mapping[
    str, type[FedBuff | Median | TrimmedMean | Krum | MultiKrum | Bulyan | GeometricMedian | NormClipping]
] = {
    "fedbuff": FedBuff,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "bulyan": Bulyan,
    "geometric_median": GeometricMedian,
    "norm_clipping": NormClipping,
}
_SUMMARIES: Mapping[str, str] = {
    "fedavg": "weighted mean",
    "fedavgm": "weighted mean with server momentum",
    "fedadagrad": "weighted mean, Adagrad at the server",
    "fedadam": "weighted mean, Adam at the server",
    "fedyogi": "weighted mean, Yogi at the server",
    "fedbuff": "asynchronous: a model for each buffer of updates, whichever model they were trained from",
    "median": "median of each element",
    "trimmed_mean": "mean of each element without the share beta of the smallest and of the largest",
    "krum": "the update that is closest to its neighbours, with f bad ones expected",
    "multi_krum": "mean of the m updates that are closest to their neighbours, with f bad ones expected",
    "bulyan": "Krum's choices, then the mean of what is closest to their median, with f bad ones expected",
    "geometric_median": "point with the smallest weighted sum of distances to all updates",
    "norm_clipping": "weighted mean of updates that are shortened to max_norm",
}
_WHOLE = frozenset({"f", "m", "iterations", "max_staleness"})
_STEP = "learning_rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyKind:
    """A row of :data:`STRATEGIES`.

    ``summary``: for people, one line. ``options``: defaults by name; None: the rule chooses. ``required``: options
    without a default. ``gathers``: it needs every update, so combiners forward them instead of summing.
    """

    summary: str
    options: Mapping[str, float | None]
    required: tuple[str, ...]
    gathers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A strategy with its options: the robust rule (None: the weighted mean) and what follows on its mean."""

    name: str
    optimizer: ServerOptimizer
    rule: RobustRule | None = None

    @property
    def gathers(self) -> bool:
        """Whether it needs every update, so that combiners forward them instead of summing."""
        return self.rule is not None

    @property
    def buffered(self) -> FedBuff | None:
        """How updates of earlier rounds count; None: they do not."""
        return self.rule if isinstance(self.rule, FedBuff) else None

    @property
    def least_updates(self) -> int:
        """Number of updates that a round needs at least."""
        return 1 if self.rule is None else self.rule.least_updates


def make_strategy(name: str, options: Mapping[str, float] | None = None) -> Strategy:
    """Make the strategy ``name`` with its defaults, but for ``options``.

    A robust rule is followed by ``learning_rate`` (1 by default): the next model is the present one plus that times
    the difference of the rule's mean.

    Raises:
        BadSettings: there is no such strategy or option (the message lists those that exist), a required option is
            missing, or a value is outside its range.

    >>> make_strategy("krum", {"f": 2.0}).rule, make_strategy("krum", {"f": 2.0}).least_updates
    (Krum(f=2), 7)
    >>> make_strategy("fedavgm").optimizer, make_strategy("fedavgm").gathers
    (FedAvgM(learning_rate=1.0, momentum=0.9), False)
    """
    kind = STRATEGIES.get(name)
    if kind is None:
        raise BadSettings(f"There is no strategy {name!r}; there are {', '.join(STRATEGIES)}.", key="strategy")
    given = dict(options or {})
    if name in OPTIMIZERS:
        return Strategy(name=name, optimizer=make_optimizer(name, given))
    for key in given:
        if key not in kind.options and key not in kind.required:
            known = ", ".join([*kind.required, *kind.options])
            raise BadSettings(f"{name} has no option {key!r}; it has {known}.", key=key)
    for key in kind.required:
        if key not in given:
            raise BadSettings(f"{name} needs the option {key}.", hint=f"Give it by --strategy-option {key}=…", key=key)
    step = {_STEP: given.pop(_STEP)} if _STEP in given else {}
    chosen: dict[str, Any] = {key: _whole(name, key, value) if key in _WHOLE else value for key, value in given.items()}
    return Strategy(name=name, optimizer=make_optimizer("fedavg", step), rule=_RULES[name](**chosen))


def _whole(name: str, key: str, value: float) -> int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value != int(value):
        raise BadSettings(f"The option {key} of {name} is {value!r}; expected was an integer.", key=key)
    return int(value)


def _kind_of(name: str, rule: type) -> StrategyKind:
    found = fields(rule)
    gathers = name in _RULES
    options = {f.name: f.default for f in found if f.default is not MISSING}
    return StrategyKind(
        summary=_SUMMARIES[name],
        options=options | ({_STEP: FedAvg().learning_rate} if gathers else {}),
        required=tuple(f.name for f in found if f.default is MISSING),
        gathers=gathers,
    )


STRATEGIES: Mapping[str, StrategyKind] = {name: _kind_of(name, rule) for name, rule in {**OPTIMIZERS, **_RULES}.items()}
"""All strategies by name: server optimizers over the weighted mean first, then the robust rules."""
