"""The network that most chaos tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.adding_network import AddingNetwork


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AddingNetwork]:
    """Two combiners and three clients."""
    with AddingNetwork(tmp_path_factory.mktemp("adding")) as net:
        net.start(combiners=2, clients=3)
        yield net


@pytest.fixture(scope="module")
def work(network: AddingNetwork) -> tuple[str, str]:
    """Digest of the package and id of the seed."""
    return network.work()
