"""Whether a client is a container, by the mounts that it sees."""

from __future__ import annotations

import pytest

from runnel.client.runtimes.docker_files import container_of

pytestmark = pytest.mark.unit

ID = "5261132a96fe164ecd430b3b3144fa746776781a585ee453610a3d20abf80fe9"
END = "rw,relatime - ext4 /dev/vda rw"


@pytest.mark.parametrize("name", ["hostname", "hosts", "resolv.conf"])
def test_a_container_has_its_files_in_etc(name: str) -> None:
    assert container_of(f"90 74 0:5 / /x {END}\n92 74 254:0 /docker/containers/{ID}/{name} /etc/{name} {END}\n") == ID


def test_the_host_of_an_engine_that_copies_is_no_container() -> None:
    there = f"/docker/overlay2/{'a' * 64}/merged/etc/hostname"
    assert container_of(f"92 74 254:0 /docker/containers/{ID}/hostname {there} {END}\n") is None
    assert container_of(f"93 74 0:9 / /docker/containers/{ID}/mounts/shm {END}\n") is None
