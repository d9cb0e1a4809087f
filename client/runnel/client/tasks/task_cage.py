"""What the containers of a task may reach and take: the site's cage, less what the task does not need."""

from __future__ import annotations

import dataclasses
from typing import Any

from runnel.client.domain.cage import MIB, NO_NETWORK, Cage
from runnel.client.domain.policy import Policy
from runnel.common.tasks import Resources

_LEAST_MEMORY = 16 * MIB


def task_cage(policy: Policy, wishes: Resources) -> Cage:
    """Return the cage for a task; of the networks that the policy allows it has ``none`` if that is one of them.

    Raises:
        BadSettings: a limit of the policy is too small for a container, or a network is none of an engine.

    >>> from runnel.client.domain.policy import ANYTHING
    >>> task_cage(ANYTHING, Resources(cpus=0.5, memory_bytes=1 << 40)).cpus
    0.5
    """
    limits: dict[str, Any] = {}
    tasks = policy.tasks.limits if policy.tasks is not None else None
    for name in ("memory_bytes", "cpus", "pids", "tmpfs_bytes", "shm_bytes", "disk_bytes"):
        for each in (tasks, policy.limits):
            if (value := getattr(each, name, None)) is not None:
                limits[name] = value
                break
    networks = (policy.tasks.networks if policy.tasks is not None else None) or {NO_NETWORK}
    network = NO_NETWORK if NO_NETWORK in networks else min(networks)
    cage = Cage(network=network, **limits)
    memory = min(cage.memory_bytes, max(wishes.memory_bytes or cage.memory_bytes, _LEAST_MEMORY))
    return dataclasses.replace(
        cage,
        memory_bytes=memory,
        cpus=min(cage.cpus, max(wishes.cpus or cage.cpus, 0.01)),
        disk_bytes=min(cage.disk_bytes, wishes.disk_bytes or cage.disk_bytes),
        tmpfs_bytes=min(cage.tmpfs_bytes, memory),
        shm_bytes=min(cage.shm_bytes, memory),
    )


def task_time(policy: Policy, wishes: Resources, own: float | None) -> float | None:
    """Return the seconds that the containers of a run may take together, ``own`` being the client's limit."""
    tasks = policy.tasks.limits.time_s if policy.tasks is not None else None
    return min((each for each in (tasks, policy.limits.time_s, wishes.time_s, own) if each is not None), default=None)
