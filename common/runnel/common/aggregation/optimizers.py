r"""Server optimizers: how the next global model follows from the present one and the mean of the updates.

With :math:`x_t` the global model, :math:`\bar x_t` the weighted mean of what the clients trained from it, and
:math:`\Delta_t = \bar x_t - x_t`, these are the rules of Reddi et al. 2021, "Adaptive Federated Optimization"
(Algorithms 1 and 2), with FedAvgM from Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification". All arithmetic is element by element in float64, so each rule is a pure function of
blocks; states are blocks as well and live in files.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from runnel.common.errors import BadSettings

Vector = NDArray[np.float64]


class ServerOptimizer(Protocol):
    """One rule with its options."""

    @property
    def slots(self) -> int:
        """Number of float64[n_params] arrays that it remembers from round to round: 0, 1 or 2."""
        ...

    def initial(self) -> tuple[float, ...]:
        """Value of every element of each slot before the first round."""
        ...

    def step(self, base: Vector, mean: Vector, state: Sequence[Vector]) -> tuple[Vector, tuple[Vector, ...]]:
        """Return the next model and state of a block.

        Args:
            base: float64[n], the present global model; not modified.
            mean: float64[n], the weighted mean of the updates; not modified.
            state: ``slots`` arrays float64[n]; not modified.

        Returns:
            float64[n] and ``slots`` arrays float64[n], which may be the arguments themselves.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg:
    r"""Federated averaging (McMahan et al. 2017): :math:`x_{t+1} = x_t + \eta \Delta_t`, with ``learning_rate`` = η.

    With the default of 1 the next model is the mean itself, bit for bit.

    >>> FedAvg().step(np.array([1.0]), np.array([3.0]), ())[0]
    array([3.])
    >>> FedAvg(learning_rate=0.5).step(np.array([1.0]), np.array([3.0]), ())[0]
    array([2.])
    """

    learning_rate: float = 1.0

    slots: ClassVar[int] = 0

    def initial(self) -> tuple[float, ...]:
        """No state."""
        return ()

    def step(self, base: Vector, mean: Vector, state: Sequence[Vector]) -> tuple[Vector, tuple[Vector, ...]]:
        """See :class:`ServerOptimizer`."""
        if self.learning_rate == 1.0:
            return mean, ()
        return base + self.learning_rate * (mean - base), ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvgM:
    r"""Averaging with server momentum (Hsu et al. 2019).

    :math:`m_t = \mu m_{t-1} + \Delta_t`, :math:`x_{t+1} = x_t + \eta m_t`, with ``momentum`` = μ, ``learning_rate`` = η
    and :math:`m_{-1} = 0`. Steady updates end up :math:`1 / (1 - \mu)` times as long as with averaging.

    >>> rule = FedAvgM(momentum=0.5)
    >>> model, state = rule.step(np.array([1.0]), np.array([3.0]), (np.array([4.0]),))
    >>> model, state  # m = 0.5 * 4 + 2
    (array([5.]), (array([4.]),))
    """

    learning_rate: float = 1.0
    momentum: float = 0.9

    slots: ClassVar[int] = 1

    def initial(self) -> tuple[float, ...]:
        """The momentum begins at 0."""
        return (0.0,)

    def step(self, base: Vector, mean: Vector, state: Sequence[Vector]) -> tuple[Vector, tuple[Vector, ...]]:
        """See :class:`ServerOptimizer`."""
        momentum = self.momentum * state[0] + (mean - base)
        return base + self.learning_rate * momentum, (momentum,)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adaptive(ABC):
    r"""What the three rules of Algorithm 2 share.

    :math:`m_t = \beta_1 m_{t-1} + (1 - \beta_1) \Delta_t`, :math:`v_t` as each rule says,
    :math:`x_{t+1} = x_t + \eta m_t / (\sqrt{v_t} + \tau)`, from :math:`m_{-1} = 0` and :math:`v_{-1} = \tau^2`. As in
    the paper there is no correction of the bias of the first rounds.
    """

    learning_rate: float
    beta_1: float
    tau: float = 1e-3

    slots: ClassVar[int] = 2

    def initial(self) -> tuple[float, ...]:
        """First moment 0, second moment τ²."""
        return (0.0, self.tau**2)

    def step(self, base: Vector, mean: Vector, state: Sequence[Vector]) -> tuple[Vector, tuple[Vector, ...]]:
        """See :class:`ServerOptimizer`."""
        delta = mean - base
        first = self.beta_1 * state[0] + (1.0 - self.beta_1) * delta
        second = self.second_moment(state[1], delta * delta)
        return base + self.learning_rate * first / (np.sqrt(second) + self.tau), (first, second)

    @abstractmethod
    def second_moment(self, before: Vector, square: Vector) -> Vector:
        """Return the next second moment from the one before and the squared update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdagrad(_Adaptive):
    r"""Adagrad at the server: :math:`v_t = v_{t-1} + \Delta_t^2`.

    ``learning_rate`` = 0.1. ``beta_1`` = 0, as in the paper's experiments: Adagrad is used without momentum.

    >>> rule = FedAdagrad(learning_rate=1.0, tau=1.0)
    >>> model, (m, v) = rule.step(np.zeros(1), np.array([3.0]), (np.zeros(1), np.array([7.0])))
    >>> model, m, v  # 3 / (sqrt(7 + 9) + 1)
    (array([0.6]), array([3.]), array([16.]))
    """

    learning_rate: float = 0.1
    beta_1: float = 0.0

    def second_moment(self, before: Vector, square: Vector) -> Vector:
        """See the class."""
        return before + square


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdam(_Adaptive):
    r"""Adam at the server: :math:`v_t = \beta_2 v_{t-1} + (1 - \beta_2) \Delta_t^2`.

    >>> rule = FedAdam(learning_rate=1.0, beta_1=0.5, beta_2=0.5, tau=1.0)
    >>> model, (m, v) = rule.step(np.zeros(1), np.array([3.0]), (np.zeros(1), np.array([9.0])))
    >>> model, m, v  # 1.5 / (sqrt(9) + 1)
    (array([0.375]), array([1.5]), array([9.]))
    """

    learning_rate: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.99

    def second_moment(self, before: Vector, square: Vector) -> Vector:
        """See the class."""
        return self.beta_2 * before + (1.0 - self.beta_2) * square


@dataclass(frozen=True, slots=True, kw_only=True)
class FedYogi(_Adaptive):
    r"""Yogi at the server: :math:`v_t = v_{t-1} - (1 - \beta_2) \Delta_t^2 \, \mathrm{sign}(v_{t-1} - \Delta_t^2)`.

    >>> rule = FedYogi(learning_rate=1.0, beta_1=0.0, beta_2=0.5, tau=1.0)
    >>> model, (m, v) = rule.step(np.zeros(1), np.array([2.0]), (np.zeros(1), np.array([6.0])))
    >>> model.round(3), v  # v = 6 - 0.5 * 4
    (array([0.667]), array([4.]))
    """

    learning_rate: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.99

    def second_moment(self, before: Vector, square: Vector) -> Vector:
        """See the class."""
        return before - (1.0 - self.beta_2) * square * np.sign(before - square)


OPTIMIZERS: Mapping[str, type[FedAvg | FedAvgM | FedAdagrad | FedAdam | FedYogi]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}
"""The strategies of a session by name."""


def make_optimizer(name: str, options: Mapping[str, float] | None = None) -> ServerOptimizer:
    """Make the optimizer ``name`` with its defaults, but for ``options``.

    Raises:
        BadSettings: there is no such optimizer or option (the message lists those that exist), or a value is outside
            its range: ``learning_rate`` and ``tau`` above 0, ``momentum``, ``beta_1``, ``beta_2`` from 0 to below 1.

    >>> make_optimizer("fedadam", {"learning_rate": 0.01})
    FedAdam(learning_rate=0.01, beta_1=0.9, tau=0.001, beta_2=0.99)
    """
    rule = OPTIMIZERS.get(name)
    if rule is None:
        raise BadSettings(f"There is no strategy {name!r}; there are {', '.join(OPTIMIZERS)}.", key="strategy")
    known = [f.name for f in fields(rule)]
    chosen: dict[str, float] = {}
    for key, value in (options or {}).items():
        if key not in known:
            raise BadSettings(f"{name} has no option {key!r}; it has {', '.join(known)}.", key=key)
        chosen[key] = _checked(name, key, value)
    return rule(**chosen)


def _checked(name: str, key: str, value: float) -> float:
    positive = key in {"learning_rate", "tau"}
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (value > 0 if positive else 0 <= value < 1):
        wanted = "a finite number above 0" if positive else "a number from 0 to below 1"
        raise BadSettings(f"The option {key} of {name} is {value!r}; expected was {wanted}.", key=key)
    return float(value)
