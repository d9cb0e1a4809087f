"""Which runs of tasks go to which client, when; and what a run's news may change.

A run is a task at one site. The durable ledger says how far each is; :class:`RunBook` holds those that have not ended
and decides who is given what. Nothing is lost when it is: it is made anew from the ledger and from what the clients say
that they hold.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from runnel.common.errors import IllegalState
from runnel.common.protocol import ENDED, RunState

_ORDER = (
    RunState.QUEUED,
    RunState.ASSIGNED,
    RunState.PREPARING,
    RunState.RUNNING,
    RunState.AWAITING_RELEASE,
    RunState.PUSHING,
)
_RANK = {state: rank for rank, state in enumerate(_ORDER)} | dict.fromkeys(ENDED, len(_ORDER))

NOT_BEGUN = frozenset({RunState.QUEUED, RunState.ASSIGNED})
"""States in which a run may still expire."""


def moves(before: RunState, after: RunState) -> bool:
    """Whether news of ``after`` change a run that is ``before``: forward only, and an end is for ever.

    >>> moves(RunState.ASSIGNED, RunState.RUNNING), moves(RunState.RUNNING, RunState.PREPARING)
    (True, False)
    >>> moves(RunState.DONE, RunState.FAILED)
    False
    """
    return _RANK[after] > _RANK[before]


@dataclass(slots=True, kw_only=True)
class OpenRun:
    """A run that has not ended.

    ``submitter``: for whom it is; a site's room is shared evenly among them. ``expires_at``: Unix time in seconds;
    None: never. ``sub``: of a sub-task. ``asked_at``: Unix time at which somebody asked for it; None: not known.
    """

    run_id: str
    task_id: str
    client: str
    submitter: str
    state: RunState = RunState.QUEUED
    expires_at: float | None = None
    sub: bool = False
    asked_at: float | None = None


@dataclass(slots=True)
class _Site:
    """A client: its open runs, oldest first; once it is attached, its room, what it was given and what waits for it."""

    runs: dict[str, OpenRun] = field(default_factory=dict)
    attached: bool = False
    slots: int = 0
    given: set[str] = field(default_factory=set)
    # Sub-tasks have room of their own: whoever waits for their results takes one of the others' places.
    waiting: dict[bool, _Turns] = field(default_factory=dict)


class _Turns:
    """Runs that wait, oldest first for each submitter; submitters take turns."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()

    def add(self, run: OpenRun) -> None:
        self._lines.setdefault(run.submitter, OrderedDict())[run.run_id] = None

    def discard(self, run: OpenRun) -> None:
        line = self._lines.get(run.submitter)
        if line is not None:
            line.pop(run.run_id, None)
            if not line:
                del self._lines[run.submitter]

    def take(self) -> str | None:
        if not self._lines:
            return None
        submitter, line = self._lines.popitem(last=False)
        run_id, _ = line.popitem(last=False)
        if line:
            self._lines[submitter] = line  # at the end: the others are first now
        return run_id


class RunBook:
    """The runs that have not ended, and who is given which.

    A client is given at most its ``task_slots`` and one more at a time, so that the next is there when one ends; for
    sub-tasks as many again. What awaits release takes no room. Among a client's waiting runs submitters take turns, and
    of one submitter's the oldest is first.
    """

    def __init__(self) -> None:
        self._runs: dict[str, OpenRun] = {}
        self._sites: dict[str, _Site] = {}
        self._expiries: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def __iter__(self) -> Iterator[OpenRun]:
        return iter(self._runs.values())

    def find(self, run_id: str) -> OpenRun | None:
        """Return a run that has not ended."""
        return self._runs.get(run_id)

    def of_client(self, client: str) -> tuple[OpenRun, ...]:
        """Return the open runs of a client, oldest first."""
        site = self._sites.get(client)
        return () if site is None else tuple(site.runs.values())

    def given(self, client: str) -> frozenset[str]:
        """Return the runs that an attached client holds or was sent."""
        site = self._sites.get(client)
        return frozenset() if site is None else frozenset(site.given)

    # ---- runs

    def add(self, run: OpenRun) -> None:
        """Take in a run; those of one client come oldest first. One that is known already changes nothing.

        Raises:
            IllegalState: it has ended.
        """
        if run.state in ENDED:
            raise IllegalState(f"Run {run.run_id} is {run.state.value}; only open runs are given out.", run=run.run_id)
        if run.run_id in self._runs:
            return
        self._runs[run.run_id] = run
        site = self._sites.setdefault(run.client, _Site())
        site.runs[run.run_id] = run
        if site.attached:
            self._wait(site, run)
        if run.expires_at is not None and run.state in NOT_BEGUN:
            heapq.heappush(self._expiries, (run.expires_at, run.run_id))

    def moved(self, run_id: str, state: RunState) -> None:
        """Note how far a run is, once that is durable; what does not move it forward changes nothing."""
        run = self._runs.get(run_id)
        if run is None or not moves(run.state, state):
            return
        run.state = state
        if state in ENDED:
            self._forget(run)

    def _forget(self, run: OpenRun) -> None:
        del self._runs[run.run_id]
        site = self._sites[run.client]
        del site.runs[run.run_id]
        site.given.discard(run.run_id)
        for turns in site.waiting.values():
            turns.discard(run)
        if not site.runs and not site.attached:
            del self._sites[run.client]

    # ---- clients

    def attached(self, client: str, *, held: Collection[str], slots: int) -> list[str]:
        """A client attached, or tells anew what it has; return the runs of those it holds that are not open any more.

        Args:
            client: its name.
            held: the runs that it holds.
            slots: for how many it has room at once; 0: it takes none.
        """
        site = self._sites.get(client)
        if site is None:
            if not held and not slots:
                return []
            site = self._sites[client] = _Site()
        site.attached, site.slots = True, slots
        site.given = {run_id for run_id in held if run_id in site.runs}
        site.waiting = {}
        for run in site.runs.values():
            self._wait(site, run)
        return [run_id for run_id in held if run_id not in site.runs]

    def left(self, client: str) -> None:
        """A client is attached nowhere; what it has not begun or not finished waits for its return."""
        site = self._sites.get(client)
        if site is None:
            return
        site.attached = False
        site.given, site.waiting = set(), {}
        if not site.runs:
            del self._sites[client]

    @staticmethod
    def _wait(site: _Site, run: OpenRun) -> None:
        if run.run_id not in site.given:
            site.waiting.setdefault(run.sub, _Turns()).add(run)

    def give(self, client: str) -> list[str]:
        """Return the runs that a client is to be sent now; they count as given from here on."""
        site = self._sites.get(client)
        if site is None or not site.attached or not site.slots:
            return []
        chosen: list[str] = []
        # What it had taken and holds no more, its state being lost, comes back first and whatever there is besides.
        for run in site.runs.values():
            if run.state is not RunState.QUEUED and run.run_id not in site.given:
                chosen.append(run.run_id)
                for turns in site.waiting.values():
                    turns.discard(run)
        site.given.update(chosen)
        for sub, turns in site.waiting.items():
            room = site.slots + 1 - sum(self._takes_room(site.runs[run_id], sub) for run_id in site.given)
            while room > 0 and (run_id := turns.take()) is not None:
                chosen.append(run_id)
                site.given.add(run_id)
                room -= 1
        return chosen

    def take_back(self, run_ids: Iterable[str]) -> None:
        """Let runs be given once more that could not be sent."""
        for run_id in run_ids:
            run = self._runs.get(run_id)
            if run is not None:
                site = self._sites[run.client]
                site.given.discard(run_id)
                if site.attached:
                    self._wait(site, run)

    @staticmethod
    def _takes_room(run: OpenRun, sub: bool) -> bool:
        # What waits for somebody at the site to look at it may do so for weeks, and takes nobody's place.
        return run.sub is sub and run.state is not RunState.AWAITING_RELEASE

    # ---- time

    def due(self, now: float) -> list[OpenRun]:
        """Return the runs that have not begun and whose time is over at ``now`` (Unix time), oldest limit first."""
        due = []
        while self._expiries and self._expiries[0][0] <= now:
            _, run_id = heapq.heappop(self._expiries)
            run = self._runs.get(run_id)
            if run is not None and run.state in NOT_BEGUN:
                due.append(run)
        return due

    def again(self, runs: Iterable[OpenRun]) -> None:
        """Let runs be due once more whose end could not be stored."""
        for run in runs:
            if run.expires_at is not None:
                heapq.heappush(self._expiries, (run.expires_at, run.run_id))

    def next_due(self) -> float | None:
        """Return when the next run may expire (Unix time); None: none does."""
        while self._expiries:
            at, run_id = self._expiries[0]
            run = self._runs.get(run_id)
            if run is not None and run.state in NOT_BEGUN:
                return at
            heapq.heappop(self._expiries)
        return None
