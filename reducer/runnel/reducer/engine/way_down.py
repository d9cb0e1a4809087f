"""How the engine speaks to a directly attached node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from runnel.common.protocol import Downward


class WayDown(Protocol):
    """To one node."""

    def send(self, message: Downward) -> None:
        """Send, in order and without waiting; of no effect when it is gone."""

    def send_each(self, messages: Iterable[Downward], number: int) -> None:
        """Send at most ``number``, each taken when it is its turn, so that they are not all held at once."""
