"""What containers of tasks below a combiner ask: passed on to the node above, whose answer it is."""

from __future__ import annotations

from runnel.combiner.domain import Membership
from runnel.common.errors import Forbidden
from runnel.common.tasks.asks import TaskAnswer, TaskAsk
from runnel.transport import NodeIdentity, UplinkLink


class AskRelay:
    """Passes questions up; an ``AskHandler``.

    Args:
        name: of this combiner.
        membership: who is attached below.
        link: the way up.
    """

    def __init__(self, name: str, membership: Membership, link: UplinkLink) -> None:
        self._name = name
        self._membership = membership
        self._link = link

    async def ask(self, identity: NodeIdentity, ask: TaskAsk, *, deadline_s: float) -> TaskAnswer:
        """Return the answer of the node above.

        Raises:
            Forbidden: the client is not below the node that asks.
            DeadlineExceeded: nobody above answered in time.
            RunnelError: what the node above said.
        """
        if identity.name not in self._membership.ways(ask.client):
            raise Forbidden(
                f"{identity.name} asks for a run of {ask.client}, which is not known to {self._name} to be below it.",
                hint="A node asks for runs of its own, and of those who are attached to it.",
                run_id=ask.run_id,
                client=ask.client,
            )
        return await self._link.ask(ask, deadline_s=deadline_s)
