"""``Directory.Join`` at a combiner, for nodes that can't reach the reducer."""

from __future__ import annotations

import dataclasses
from types import TracebackType

import grpc

from runnel.common.errors import CapacityExceeded
from runnel.transport import ClientTls, JoinAsk, Place, join, open_channel

_DEADLINE_S = 8.0  # below the ten seconds that those who join wait, so that they hear what is wrong


class JoinRelay:
    """Asks the directory above what those below ask; a ``DirectoryHandler`` and an async context manager.

    The caller's token goes along as it came and nothing of it is kept. The directory decides, as about everybody who
    asks it: the relay only says that this combiner is preferred where the caller prefers none, because that is the one
    which the caller is known to reach, and hides the one place that it may not know, the reducer itself.

    Args:
        name: of this combiner.
        network: address of the directory above, ``HOST:PORT``; it may be a relay too.
        tls: whom to trust there; None: plain text.
        allow_plaintext: whether plain text may be spoken with other machines.
    """

    def __init__(self, name: str, network: str, *, tls: ClientTls | None, allow_plaintext: bool) -> None:
        self._name = name
        self._network = network
        self._tls = tls
        self._allow_plaintext = allow_plaintext
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> JoinRelay:
        self._channel = open_channel(self._network, tls=self._tls, allow_plaintext=self._allow_plaintext)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def join(self, ask: JoinAsk, bearer: str | None) -> Place:
        """Return the place that the directory above gives.

        Raises:
            CapacityExceeded: there is room at the reducer only.
            Unreachable, DeadlineExceeded: the directory does not answer.
            RunnelError: what else it said.
        """
        assert self._channel is not None
        if not ask.prefer and not ask.attached_to and self._name not in ask.avoid:
            ask = dataclasses.replace(ask, prefer=self._name)
        place = await join(
            self._channel, ask, token=bearer, deadline_s=_DEADLINE_S, peer=f"the directory at {self._network}"
        )
        if not place.address:
            raise CapacityExceeded(
                f"No combiner has room for {ask.name}; the reducer has, but is not reached through {self._name}.",
                hint="Start another combiner or raise a combiner's --capacity; the node tries again by itself.",
                name=ask.name,
            )
        return place
