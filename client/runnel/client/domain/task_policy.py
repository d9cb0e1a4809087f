"""Which container tasks a site lets run: the rules for them, and the verdict on one. Pure: facts in, a verdict out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from runnel.client.domain.egress import EgressHost

DEFAULT_OUTPUT_BYTES = 1 << 30
DEFAULT_OUTPUT_FILES = 10_000
DEFAULT_LOG_BYTES = 8 << 20
_DEFAULT_REGISTRY = "docker.io"


class Pull(Enum):
    """When an image is fetched: if the engine does not have it, before each run, or by the site's people only."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits:
    """What one run of a task may take; None: as the policy's own limits, or the cage's, say.

    Args:
        memory_bytes: of its container, all processes and what is in memory folders together.
        cpus: processors at once.
        pids: processes and threads.
        time_s: seconds that its containers may run, all together.
        disk_bytes: of everything that it may write.
        tmpfs_bytes: of ``/tmp``, which is memory.
        shm_bytes: of ``/dev/shm``, which is memory.
        output_bytes: of its result files together, before they are put into an archive.
        output_files: files and folders among them.
        log_bytes: of what is kept of each of standard output and error.
    """

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    time_s: float | None = None
    disk_bytes: int | None = None
    tmpfs_bytes: int | None = None
    shm_bytes: int | None = None
    output_bytes: int = DEFAULT_OUTPUT_BYTES
    output_files: int = DEFAULT_OUTPUT_FILES
    log_bytes: int = DEFAULT_LOG_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What is known of a run.

    Args:
        organisation: that asks.
        user: name of the token of who asks.
        images: of all executors, as they are named.
        databases: labels of those that it selects from or that its containers are to see.
        network: of its containers.
        central: whether its container asks for sub-tasks, over a network of its own.
        selects: whether it runs nothing, and what it selects leaves the site.
        digests: for each image, in the same order, all by which the engine knows it; None: not known yet, so what is
            said of digests is not judged.
    """

    organisation: str
    user: str
    images: tuple[str, ...]
    databases: frozenset[str] = frozenset()
    network: str = "none"
    central: bool = False
    selects: bool = False
    digests: tuple[frozenset[str], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleBroken:
    """A rule, by its key in the policy, that does not let a run be, and why in words that follow a colon."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPolicy:
    """What a site lets run of tasks. Every rule that is there has to agree; one that is None leaves its subject open.

    Args:
        images: patterns, one of which has to match the whole name of each image, as it is written in the task.
        digests: ``sha256:…``, by one of which the engine has to know each image.
        registries: hosts, as ``registry.example.org``; an image that names none is from ``docker.io``.
        users: names of tokens.
        organisations: who may ask.
        databases: labels of those that tasks may use.
        networks: of the engine, that containers may have.
        egress: hosts that containers reach by a proxy of the run's own; if there is none, they have no proxy.
        central: whether central functions run here, whose containers reach what this machine serves on all addresses.
        select: whether data may be selected out, by tasks that run nothing (levels 0 and 1 of Federated Data Sharing; a
            site of level 2 gives out only what containers make of its data).
        pull: when images are fetched.
        review: whether results wait until somebody at the site has looked at them.
        remote_review: names of tokens whose owners may decide about results without being at the site.
        minimum_rows: a selection with fewer rows than this is not given to a container.
        limits: of each run.
    """

    images: tuple[str, ...] | None = None
    digests: frozenset[str] | None = None
    registries: frozenset[str] | None = None
    users: frozenset[str] | None = None
    organisations: frozenset[str] | None = None
    databases: frozenset[str] | None = None
    networks: frozenset[str] | None = None
    egress: tuple[EgressHost, ...] = ()
    central: bool = False
    select: bool = False
    pull: Pull = Pull.MISSING
    review: bool = False
    remote_review: frozenset[str] = frozenset()
    minimum_rows: int = 0
    limits: TaskLimits = field(default_factory=TaskLimits)


PRESENT_IMAGES = TaskPolicy(pull=Pull.NEVER, central=True)
"""The rules of a client whose network is on the loopback, if it is given none: any image that is there already."""


def judge_task(policy: TaskPolicy | None, facts: TaskFacts) -> RuleBroken | None:
    """Return the first rule that a run breaks, None if it may begin; ``policy`` None: none may."""
    if policy is None:
        return RuleBroken(rule="tasks", reason="the policy of this site has no table [tasks], so no task runs here")
    return _who(policy, facts) or _what(policy, facts) or _which(policy, facts)


def registry_of(image: str) -> str:
    """Return the host of the registry that ``image`` is from, by the rule that engines have.

    >>> registry_of("registry.example.org/a/b:1"), registry_of("localhost:5000/b"), registry_of("a/b")
    ('registry.example.org', 'localhost:5000', 'docker.io')
    """
    host, separator, _ = image.partition("/")
    named = separator and ("." in host or ":" in host or host == "localhost")
    return host if named else _DEFAULT_REGISTRY


def _who(policy: TaskPolicy, facts: TaskFacts) -> RuleBroken | None:
    if policy.organisations is not None and facts.organisation not in policy.organisations:
        return RuleBroken(rule="organisations", reason=f"the organisation {facts.organisation!r} is not allowed")
    if policy.users is not None and facts.user not in policy.users:
        return RuleBroken(rule="users", reason=f"the user {facts.user!r} is not allowed")
    return None


def _what(policy: TaskPolicy, facts: TaskFacts) -> RuleBroken | None:
    for number, image in enumerate(facts.images):
        if policy.images is not None and not any(re.fullmatch(each, image) for each in policy.images):
            return RuleBroken(rule="images", reason=f"no pattern matches the image {image}")
        if policy.registries is not None and registry_of(image) not in policy.registries:
            return RuleBroken(rule="registries", reason=f"the registry {registry_of(image)} of {image} is not allowed")
        if policy.digests is not None and facts.digests is not None and not facts.digests[number] & policy.digests:
            return RuleBroken(rule="digests", reason=f"the digest of the image {image} is not among those allowed")
    return None


def _which(policy: TaskPolicy, facts: TaskFacts) -> RuleBroken | None:
    if policy.databases is not None and (unknown := sorted(facts.databases - policy.databases)):
        return RuleBroken(rule="databases", reason=f"the database {', '.join(unknown)} is not for tasks")
    if facts.selects:
        reason = "this site (level 2) lets no data be selected out; it runs containers on selections of them"
        return None if policy.select else RuleBroken(rule="select", reason=reason)
    allowed = policy.networks if policy.networks is not None else frozenset({"none"})
    if facts.network not in allowed:
        return RuleBroken(rule="networks", reason=f"the network {facts.network} is not allowed")
    if facts.central and not policy.central:
        return RuleBroken(rule="central", reason="central functions, which ask for sub-tasks, do not run here")
    return None
