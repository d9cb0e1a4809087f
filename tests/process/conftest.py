"""What several files of tests of real processes share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runnel.client.runtimes.warm_starts import WarmStarts
from tests.doubles.two_starts import Site, two_starts
from tests.needs import needs


@pytest.fixture
def warm_starts_supported() -> None:
    needs(WarmStarts.supported(), "Linux, which can hold a process by a file descriptor")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with two_starts(tmp_path) as made:
        yield made
