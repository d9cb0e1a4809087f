"""What a package does in a round at the reducer, called off."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from runnel.reducer.engine.server_rounds import ServerRounds, Stopped

pytestmark = pytest.mark.unit


async def test_it_may_be_called_off_twice_while_a_thread_still_ends() -> None:
    nothing = cast(Any, None)
    rounds = ServerRounds(nothing, functions=None, journal=nothing, retention=nothing, say=nothing, pause=nothing)
    may_end = asyncio.Event()

    async def in_a_thread() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    stoppable = asyncio.ensure_future(rounds._stoppable(in_a_thread))
    await asyncio.sleep(0)
    for _ in range(2):
        rounds.stop()
        await asyncio.sleep(0.01)
    may_end.set()
    with pytest.raises(Stopped):
        await stoppable
