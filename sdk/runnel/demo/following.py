"""Waiting for what happens in the network, as its reducer tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from runnel.common.errors import DeadlineExceeded
from runnel.demo.scene import Scene
from runnel.demo.screens import Screen
from runnel.sdk import Network
from runnel.sdk.values import Event


class Following:
    """Brings a scene up to date by the events of a network and wakes those who wait for something in it."""

    def __init__(self, scene: Scene, screen: Screen) -> None:
        self.scene = scene
        self._screen = screen
        self._over = False
        self._changed = asyncio.Event()

    async def run(self, url: str) -> None:
        """Follow the network at ``url`` until it is gone.

        Raises:
            Unreachable: it is gone. The thread behind this ends then too, and only then, also after a cancellation.
        """
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(_read, url, lambda event: loop.call_soon_threadsafe(self._take, event))

    def stop(self) -> None:
        """Leave the scene as it is: what comes from now on is the end of the network."""
        self._over = True

    async def until(self, there: Callable[[Scene], bool], *, silence_s: float, what: str) -> None:
        """Wait until ``there`` holds.

        Raises:
            DeadlineExceeded: nothing happened for ``silence_s`` seconds; ``what`` was waited for.
        """
        while not there(self.scene):
            changed = self._changed
            try:
                async with asyncio.timeout(silence_s):
                    await changed.wait()
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"The demo waited for {what}, and nothing happened for {silence_s:g} s.",
                    hint="Is the machine very busy? Otherwise --keep keeps the logs.",
                ) from error

    def _take(self, event: Event) -> None:
        if self._over:
            return
        if (line := self.scene.take(event)) is not None:
            self._screen.line(line)
        self._changed.set()
        self._changed = asyncio.Event()


def _read(url: str, take: Callable[[Event], object]) -> None:
    with Network(url) as network:
        # The reducer is a process of this demonstration: when it does not answer it is gone.
        for event in network.events(patience_s=0.0):
            take(event)
