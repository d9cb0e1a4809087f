"""A short soak with a fixed seed; `make soak MINUTES=10` runs a long one."""

from __future__ import annotations

import pytest

from tests.chaos.soak import soak

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(300)]


def test_the_ledger_balances_under_random_faults() -> None:
    story: list[str] = []
    try:
        done = soak(seed=20, seconds=20, tell=story.append)
    except AssertionError as error:
        pytest.fail(f"seed 20: {error}\n" + "\n".join(story))
    assert done.sessions >= 2
    assert done.faults >= 2
