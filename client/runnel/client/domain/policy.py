"""What a site lets run: its policy, and the verdict on one package. Pure: takes facts and a time, returns a verdict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from enum import Enum
from zoneinfo import ZoneInfo

from runnel.client.domain.task_policy import PRESENT_IMAGES, TaskPolicy

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_WEEK = 8  # days from yesterday on in which each weekday comes


class Approval(Enum):
    """What makes a package run that no rule refuses.

    ``SIGNED``: a signature by an allowed signer, or an approved digest. ``REVIEWED``: an approved digest, whoever
    signed. ``ANYTHING``: nothing more.
    """

    SIGNED = "signed"
    REVIEWED = "reviewed"
    ANYTHING = "anything"


class Review(Enum):
    """What the people of the site said about a digest."""

    APPROVED = "approved"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known about a package that is to run.

    Args:
        digest: SHA-256 of its archive, in hex.
        name: what it calls itself; its digest if it does not.
        signers: raw public keys whose signature of the digest verified.
        forged: raw public keys of signatures that did not.
        runtime: where its entry points are to run, such as ``process``.
        network: what they are to reach: ``host`` for processes, else the network of their container.
        review: what the site's people said about the digest; None: nothing.
    """

    digest: str
    name: str
    signers: frozenset[bytes] = frozenset()
    forged: frozenset[bytes] = frozenset()
    runtime: str = "process"
    network: str = "host"
    review: Review | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """It may run; ``by`` says why, ``signer`` who of the allowed signers vouches for it, if anybody does."""

    by: str
    signer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitingApproval:
    """Somebody at the site has to look at it first."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A rule of the policy, by its key, or the site's people (``review``) say no."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotNow:
    """The site takes work again at ``until``."""

    until: datetime


Verdict = Allowed | AwaitingApproval | Refused | NotNow


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """A time of the week: on ``days`` (0 is Monday) from ``begin`` to ``end`` in ``zone``.

    An ``end`` that is not after ``begin`` is of the next day; equal times are a whole day.
    """

    days: frozenset[int]
    begin: time
    end: time
    zone: ZoneInfo

    def spans(self, now: datetime) -> Iterable[tuple[datetime, datetime]]:
        """Yield begin and end (UTC) of those around ``now`` and of the week after."""
        today = now.astimezone(self.zone).date()
        for offset in range(-1, _WEEK):
            day = today + timedelta(days=offset)
            if day.weekday() in self.days:
                last = day if self.end > self.begin else day + timedelta(days=1)
                begin = datetime.combine(day, self.begin, self.zone)
                yield begin.astimezone(UTC), datetime.combine(last, self.end, self.zone).astimezone(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseRule:
    """Who sees a database: packages whose name matches one of ``packages``, signed by one of ``signers``; None: all."""

    packages: tuple[str, ...] | None = None
    signers: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLimits:
    """What one run may take at most; None: as the client is set.

    Args:
        memory_bytes: memory of each of its processes, or of its container.
        cpus: processors at once.
        cpu_s: processor seconds of each of its processes.
        pids: processes and threads.
        time_s: seconds.
        output_bytes: lines that are kept.
        tmpfs_bytes: of scratch in memory.
        shm_bytes: of memory that its processes share.
        disk_bytes: that it writes to its folder.
    """

    memory_bytes: int | None = None
    cpus: float | None = None
    cpu_s: float | None = None
    pids: int | None = None
    time_s: float | None = None
    output_bytes: int | None = None
    tmpfs_bytes: int | None = None
    shm_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a site lets run. What is None leaves its subject open; an empty collection allows nothing.

    Args:
        approve: what makes a package run.
        signers: raw public key by the name that the site gives its owner.
        digests: approved ones, besides those of reviews.
        packages: patterns, one of which has to match the whole name.
        runtimes: that may be used.
        networks: that entry points may reach.
        installs: whether environments may be installed and images built; the runtime keeps to it.
        hours: when work is taken; empty: always.
        databases: who sees which; one that is not named is seen by nobody. None: all are seen by all.
        limits: of each run.
        tasks: which container tasks run; None: none.
    """

    approve: Approval = Approval.SIGNED
    signers: Mapping[str, bytes] = field(default_factory=dict)
    digests: frozenset[str] = frozenset()
    packages: tuple[str, ...] | None = None
    runtimes: frozenset[str] | None = None
    networks: frozenset[str] | None = None
    installs: bool = True
    hours: tuple[Hours, ...] = ()
    databases: Mapping[str, DatabaseRule] | None = None
    limits: PolicyLimits = field(default_factory=PolicyLimits)
    tasks: TaskPolicy | None = None

    def judge(self, facts: Facts, now: datetime) -> Verdict:
        """Say whether a package may run at ``now``, which has a time zone."""
        until = self.closed_until(now)
        if until is not None:
            return NotNow(until=until)
        return self._refusal(facts) or self._approval(facts)

    def closed_until(self, now: datetime) -> datetime | None:
        """Return when work is taken again (UTC), or None if it is now."""
        if not self.hours:
            return None
        spans = [span for hours in self.hours for span in hours.spans(now)]
        if any(begin <= now < end for begin, end in spans):
            return None
        return min(begin for begin, _ in spans if begin > now)

    def databases_of(self, facts: Facts, names: Iterable[str]) -> frozenset[str]:
        """Return those of the site's databases that a package sees."""
        if self.databases is None:
            return frozenset(names)
        rules = {name: self.databases[name] for name in names if name in self.databases}
        signers = frozenset(self._names(facts.signers))
        return frozenset(name for name, rule in rules.items() if _sees(rule, facts.name, signers))

    def _refusal(self, facts: Facts) -> Refused | None:
        if facts.review is Review.REFUSED:
            return Refused(rule="review", reason="the people of the site refused this digest")
        if forged := sorted(self._names(facts.forged)):
            return Refused(rule="signers", reason=f"the signature in the name of {', '.join(forged)} does not verify")
        if self.packages is not None and not _matches(self.packages, facts.name):
            return Refused(rule="packages", reason=f"no pattern matches the name {facts.name}")
        if self.runtimes is not None and facts.runtime not in self.runtimes:
            return Refused(rule="runtimes", reason=f"the runtime {facts.runtime} is not allowed")
        if self.networks is not None and facts.network not in self.networks:
            return Refused(rule="networks", reason=f"the network {facts.network} is not allowed")
        return None

    def _approval(self, facts: Facts) -> Verdict:
        signer = next(iter(sorted(self._names(facts.signers))), "")
        if self.approve is Approval.ANYTHING:
            return Allowed(by="anything", signer=signer)
        if facts.digest in self.digests:
            return Allowed(by="digest", signer=signer)
        if facts.review is Review.APPROVED:
            return Allowed(by="review", signer=signer)
        if self.approve is Approval.REVIEWED:
            return AwaitingApproval(reason="its digest is not approved")
        if signer:
            return Allowed(by="signer", signer=signer)
        signed = "nobody whom the site allows signed it" if facts.signers else "it is not signed"
        return AwaitingApproval(reason=f"{signed}, and its digest is not approved")

    def _names(self, keys: frozenset[bytes]) -> list[str]:
        return [name for name, key in self.signers.items() if key in keys]


ANYTHING = Policy(approve=Approval.ANYTHING, tasks=PRESENT_IMAGES)
"""The policy of a client whose network is on the loopback, if it is given none."""

SIGNED = Policy(approve=Approval.SIGNED)
"""The policy of any other client, if it is given none: nobody is allowed as signer, so people review each package."""


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _sees(rule: DatabaseRule, name: str, signers: frozenset[str]) -> bool:
    if rule.packages is not None and not _matches(rule.packages, name):
        return False
    return rule.signers is None or bool(rule.signers & signers)
