"""The gate of a site: each package passes it before anything of it runs, by the site's policy and its people."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog

from runnel.client.audit import AuditLog, utc_now
from runnel.client.domain.policy import Allowed, AwaitingApproval, Facts, NotNow, Policy, Refused, Verdict
from runnel.client.policy_file import SitePolicy, policy_document
from runnel.client.reviews import Pending, Reviews
from runnel.client.runtimes import Limits, PackageFiles
from runnel.client.runtimes.runtime import DEFAULT_OUTPUT_BYTES
from runnel.common import errors
from runnel.common.blobs import in_thread
from runnel.common.errors import OutsideHours, PolicyRefused, RunnelError
from runnel.common.protocol import Assignment
from runnel.compute_package import key_id, verifies

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a package may do that was let in; ``signer``: name of the allowed signer who vouches for it, or empty."""

    facts: Facts
    policy: Policy
    by: str
    signer: str

    @property
    def limits(self) -> Limits:
        """Return what each of its processes may take."""
        limits = self.policy.limits
        return Limits(
            memory_bytes=limits.memory_bytes,
            cpu_s=limits.cpu_s,
            output_bytes=limits.output_bytes or DEFAULT_OUTPUT_BYTES,
        )

    def timeout_s(self, own: float | None) -> float | None:
        """Return the time of one run: the shorter of the policy's and the site's ``own``."""
        return min((each for each in (self.policy.limits.time_s, own) if each is not None), default=None)


class Gate:
    """Judges packages by a policy and remembers whom it sent away, to say when that changes.

    Args:
        client: name of this client, for messages.
        site: the policy.
        reviews: what the site's people decided.
        audit: the site's log.
        runtime_name: where packages are to run, as the policy calls it.
        network: what entry points reach there.
        clock: the present time, with a time zone.
    """

    def __init__(
        self,
        *,
        client: str,
        site: SitePolicy,
        reviews: Reviews,
        audit: AuditLog,
        runtime_name: str = "process",
        network: str = "host",
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.audit = audit
        self._client = client
        self._site = site
        self._reviews = reviews
        self._runtime_name = runtime_name
        self._network = network
        self._clock = clock
        self._sent_away: dict[str, tuple[Facts | None, type[Verdict]]] = {}
        self._judged: dict[str, tuple[Facts | None, type[Verdict]]] = {}
        self._noted: set[tuple[str, str]] = set()

    @property
    def policy(self) -> SitePolicy:
        """By which it judges."""
        return self._site

    def begin(self, **about: str) -> None:
        """Write down by which policy the client works from now on. Blocks."""
        self._write_down(self._site, **about)

    def follow(self, site: SitePolicy, *, network: str) -> None:
        """Work by another policy from now on; what runs goes on as it was let in. Blocks.

        Raises:
            CorruptData, StorageFull: that can't be written down, and nothing has changed.
        """
        self._write_down(site, client=self._client)
        self._site, self._network = site, network
        self._noted.clear()

    def keep(self, problem: str) -> None:
        """Write down that another policy was not taken over, and why. Blocks."""
        self.audit.append("policy.rejected", {"problem": problem, "kept": self._site.fingerprint})

    def _write_down(self, site: SitePolicy, **about: str) -> None:
        document = policy_document(site.policy)
        self.audit.append(
            "policy.set", {"source": site.source, "fingerprint": site.fingerprint, "policy": document, **about}
        )

    def require_open(self, assignment: Assignment) -> None:
        """Take no work outside of the site's hours, before anything is fetched.

        Raises:
            OutsideHours: it is not the time.
        """
        until = self._site.policy.closed_until(self._clock())
        if until is not None:
            self._judged[assignment.package.sha256] = (None, NotNow)
            raise self._outside(until)

    async def admit(self, assignment: Assignment, package: PackageFiles, archive: Path) -> Admission:
        """Let a package in, of which nothing has run yet.

        Args:
            assignment: what is asked for.
            package: its files.
            archive: its file, for those who review it.

        Raises:
            AwaitingApproval: somebody has to look at it first.
            OutsideHours: it is not the time.
            PolicyRefused: it may not run here; the message names the rule.
            CorruptData: what the site's people decided can't be read.
            StorageFull: there is no room to write down that it waits.
        """
        policy = self._site.policy
        # Here and not in a thread: it looks for one small file, which takes less than the way to a thread and back.
        facts, verdict = self._judge(policy, assignment, package)
        digest = assignment.package.sha256
        if isinstance(verdict, Allowed):
            self._judged.pop(digest, None)
            self._sent_away.pop(digest, None)
            return Admission(facts=facts, policy=policy, by=verdict.by, signer=verdict.signer)
        self._judged[digest] = (facts, type(verdict))
        match verdict:
            case AwaitingApproval():
                await in_thread(self._ask, assignment, package, facts, archive, verdict.reason)
                raise errors.AwaitingApproval(
                    f"{self._client} has to approve the package {_called(facts)} first: {verdict.reason}.",
                    hint=f"Somebody at its site does so with: runnel client review approve {digest[:12]}.",
                    package=digest,
                )
            case NotNow(until=until):
                raise self._outside(until)
            case Refused():
                await in_thread(self._note_refusal, assignment, facts, verdict)
                raise PolicyRefused(
                    f"The policy of {self._client} refuses the package {_called(facts)} by its rule {verdict.rule}:"
                    f" {verdict.reason}.",
                    hint="Ask the people of that site.",
                    rule=verdict.rule,
                    package=digest,
                )

    def answered(self, assignment: Assignment) -> None:
        """The answer to an assignment is kept: if the package was sent away, watch from now on whether that changes.

        Not before: who asks again while the answer is on its way gets that one, and nobody would tell it of the change.
        """
        digest = assignment.package.sha256
        if (judged := self._judged.pop(digest, None)) is not None:
            self._sent_away[digest] = judged

    async def changed(self) -> bool:
        """Whether a package that was sent away would be answered otherwise now; each change is told once."""
        if not self._sent_away:
            return False
        try:
            changed = await in_thread(self._changed_ones, dict(self._sent_away))
        except (RunnelError, OSError) as error:
            log.warning("decisions can't be read", error=str(error))
            return False
        for digest in changed:
            self._sent_away.pop(digest, None)
        return bool(changed)

    def _changed_ones(self, sent_away: dict[str, tuple[Facts | None, type[Verdict]]]) -> list[str]:
        policy, now, changed = self._site.policy, self._clock(), []
        for digest, (facts, before) in sent_away.items():
            if facts is None:
                if policy.closed_until(now) is None:
                    changed.append(digest)
                continue
            now_known = dataclasses.replace(facts, review=self._reviews.review(digest), network=self._network)
            verdict = policy.judge(now_known, now)
            if type(verdict) is not before:
                changed.append(digest)
        return changed

    def _judge(self, policy: Policy, assignment: Assignment, package: PackageFiles) -> tuple[Facts, Verdict]:
        facts = self._facts(assignment, package)
        verdict = policy.judge(facts, self._clock())
        if isinstance(verdict, Allowed):
            self._reviews.settled(facts.digest)
        return facts, verdict

    def _facts(self, assignment: Assignment, package: PackageFiles) -> Facts:
        digest = assignment.package.sha256
        good = frozenset(each.public_key for each in assignment.signatures if verifies(each, digest))
        return Facts(
            digest=digest,
            name=package.manifest.name,
            signers=good,
            forged=frozenset(each.public_key for each in assignment.signatures) - good,
            runtime=self._runtime_name,
            network=self._network,
            review=self._reviews.review(digest),
        )

    def _ask(self, assignment: Assignment, package: PackageFiles, facts: Facts, archive: Path, reason: str) -> None:
        asker = f"{assignment.organisation}/{assignment.key.session_id}"
        signers = tuple(sorted(map(key_id, facts.signers)))
        pending = Pending(
            digest=facts.digest,
            name=_name(facts),
            version=package.manifest.version,
            archive=self._reviews.relative(archive),
            signers=signers,
            asking=(asker,),
            reason=reason,
            since=self._clock(),
        )
        if self._reviews.ask(pending):
            log.warning("a package waits for approval", package=facts.digest, name=_name(facts), asking=asker)
            self.audit.append("package.asked", _about(assignment, facts) | {"reason": reason})

    def _note_refusal(self, assignment: Assignment, facts: Facts, refused: Refused) -> None:
        if (facts.digest, refused.rule) not in self._noted:
            self._noted.add((facts.digest, refused.rule))
            note = {"rule": refused.rule, "reason": refused.reason}
            self.audit.append("package.refused", _about(assignment, facts) | note)

    def _outside(self, until: datetime) -> OutsideHours:
        return OutsideHours(
            f"{self._client} takes no work before {until:%Y-%m-%d %H:%M} UTC, by the hours of its site.",
            until=until.isoformat(),
        )


def _name(facts: Facts) -> str:
    """Return the name that a package gave itself; one that gave itself none is called by its digest."""
    return "" if facts.name == facts.digest else facts.name


def _called(facts: Facts) -> str:
    short = facts.digest[:12]
    return f"{_name(facts)} ({short})" if _name(facts) else short


def _about(assignment: Assignment, facts: Facts) -> dict[str, object]:
    return {
        "organisation": assignment.organisation,
        "session": assignment.key.session_id,
        "package": facts.digest,
        "name": _name(facts),
        "keys": sorted(map(key_id, facts.signers)),
    }


def about_run(assignment: Assignment, admission: Admission, databases: list[str]) -> dict[str, object]:
    """Return what the audit log says of each run of an assignment's package."""
    return _about(assignment, admission.facts) | {
        "signer": admission.signer,
        "allowed_by": admission.by,
        "round": assignment.key.round,
        "work": assignment.key.work.value,
        "databases": databases,
    }
