"""A short soak with a fixed seed; `make soak MINUTES=10` runs a long one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runnel.common.errors import Unreachable
from tests.chaos.soak import main, soak

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(300)]


def test_the_ledger_balances_under_random_faults() -> None:
    story: list[str] = []
    try:
        done = soak(seed=20, seconds=20, tell=story.append)
    except Exception as error:  # noqa: BLE001 - whatever it is
        pytest.fail(f"seed 20: {type(error).__name__}: {error}\n" + "\n".join(story))
    assert done.sessions >= 2
    assert done.faults >= 2


@pytest.mark.parametrize(
    "error", [AssertionError("2 is not 3"), Unreachable("Nobody is there."), RuntimeError("c1 ended")]
)
def test_whatever_fails_the_seed_and_the_story_are_told(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    def run(seed: int, seconds: float, tell: Callable[[str], object]) -> None:
        assert (seed, seconds) == (7, 30.0)
        tell("kill -9 c1")
        raise error

    assert main(["--minutes", "0.5", "--seed", "7"], run) == 1
    first, fault, last = capsys.readouterr().out.splitlines()
    assert "seed 7" in first
    assert "kill -9 c1" in fault
    assert f"FAILED with --seed 7: {type(error).__name__}: " in last
    assert str(error) in last


@pytest.mark.parametrize("minutes", ["0", "-1", "ten"])
def test_a_soak_of_no_time_proves_nothing(capsys: pytest.CaptureFixture[str], minutes: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--minutes", minutes])
    assert ended.value.code == 2
    assert "--minutes" in capsys.readouterr().err.splitlines()[-1]
