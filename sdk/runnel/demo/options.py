"""What a demonstration is asked to show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EPOCHS = 5
"""Passes of a site over its data in each round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """How large the network is, how long it trains, and what is left of it.

    Args:
        rounds: of training, at least 1.
        clients: sites with data, at least 1.
        combiners: between clients and reducer; with 0 the clients attach to the reducer itself.
        non_iid: sites differ in what they have, by a Dirichlet distribution.
        folder: where ``model.npz`` is written, and with ``keep`` everything else.
        keep: keep the state of all components, the data, the logs and a script that starts them again.
        example: the compute package, with the scripts of ``examples/digits`` in it.
    """

    rounds: int = 10
    clients: int = 6
    combiners: int = 2
    non_iid: bool = False
    folder: Path = Path("runnel-demo")
    keep: bool = False
    example: Path
