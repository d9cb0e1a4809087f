"""The cage of a container: what the code of a package can reach and take while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.common.errors import BadSettings

MIB = 1 << 20
NO_NETWORK = "none"
NOBODY = 65534
_LEAST = {"memory_bytes": 16 * MIB, "pids": 4, "tmpfs_bytes": MIB, "shm_bytes": MIB, "disk_bytes": MIB}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cage:
    """What one run in a container may have. The defaults suit small models; a site widens what its packages need.

    Some things are not to be had at any setting: rights of root, capabilities, new privileges, devices, a root
    filesystem that can be written, the namespaces of the host.

    Args:
        network: name of an engine's network; ``none``: no network but the container's own loopback.
        memory_bytes: of all processes together, with what they write to ``/tmp`` and ``/dev/shm``; there is no swap.
        cpus: processors' worth of time in each moment, at most what the engine has.
        pids: processes and threads together.
        tmpfs_bytes: of ``/tmp``, which is memory.
        shm_bytes: of ``/dev/shm``, which is memory.
        disk_bytes: of the folder of a run, and of the package's folder where ``startup`` and ``build`` may write it.
        user: ``UID:GID`` of the processes. None: those of the client; of a client that is root, nobody's.
    """

    network: str = NO_NETWORK
    memory_bytes: int = 4096 * MIB
    cpus: float = 2.0
    pids: int = 256
    tmpfs_bytes: int = 256 * MIB
    shm_bytes: int = 64 * MIB
    disk_bytes: int = 8192 * MIB
    user: str | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) < least:
                raise BadSettings(f"{name} of a cage should be at least {least:,} but is {value:,}.", key=name)
        if not 0.01 <= self.cpus < float("inf"):
            raise BadSettings(f"cpus of a cage should be a number of at least 0.01 but is {self.cpus}.", key="cpus")
        if not self.network or self.network == "host" or self.network.startswith("container:"):
            raise BadSettings(
                f"network of a cage should name a network of the engine but is {self.network!r}.",
                hint="The host's own network, or another container's, would be no cage.",
                key="network",
            )
        if self.user is not None:
            _owner(self.user)

    def owner(self, client: tuple[int, int]) -> tuple[int, int]:
        """Return (uid, gid) of the processes, ``client`` being those of the client itself.

        >>> Cage().owner((1000, 100)), Cage().owner((0, 0)), Cage(user="7:8").owner((0, 0))
        ((1000, 100), (65534, 65534), (7, 8))
        """
        if self.user is not None:
            return _owner(self.user)
        return client if client[0] != 0 else (NOBODY, NOBODY)


def _owner(user: str) -> tuple[int, int]:
    uid, _, gid = user.partition(":")
    if not (uid.isascii() and uid.isdecimal() and gid.isascii() and gid.isdecimal() and int(uid)):
        raise BadSettings(
            f"user of a cage should be UID:GID in numbers, not root's, but is {user!r}.",
            hint="Entry points never run as root.",
            key="user",
        )
    return int(uid), int(gid)
