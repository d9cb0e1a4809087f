"""Short soaks with fixed seeds; `make soak MINUTES=10` runs a long one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from runnel.common.errors import Unreachable
from tests.chaos.soak import drawn_strategies, main, soak
from tests.chaos.soak_network import DATABASES, SHAPES, Ground
from tests.chaos.soak_strategies import STRATEGIES

pytestmark = [pytest.mark.process, pytest.mark.restarts, pytest.mark.timeout(300)]


# One batch of sessions each; together they have all shapes, both databases and all strategies.
SEEDS = (120, 327, 381)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ledger_balances_under_random_faults(seed: int) -> None:
    story: list[str] = []
    try:
        done = soak(seed, seconds=0.1, tell=story.append)
    except Exception as error:  # noqa: BLE001 - whatever it is
        pytest.fail(f"{type(error).__name__}: {error}\n" + "\n".join(story))
    assert done.sessions == 2
    assert done.faults >= 2
    assert story[0].startswith(f"seed {seed}: shape ")


def test_the_seeds_draw_every_shape_database_and_strategy() -> None:
    draws = [random.Random(seed) for seed in SEEDS]
    grounds = [Ground.drawn(by) for by in draws]
    assert {ground.shape for ground in grounds} == SHAPES.keys()
    assert {ground.database for ground in grounds} == set(DATABASES)
    assert {name for by in draws for name in drawn_strategies(by)} == STRATEGIES.keys()


@pytest.mark.parametrize(
    "error", [AssertionError("2 is not 3"), Unreachable("Nobody is there."), RuntimeError("c1 ended")]
)
def test_whatever_fails_the_seed_and_the_story_are_told(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    def run(seed: int, seconds: float, tell: Callable[[str], object]) -> None:
        seeds.append(seed)
        assert 0 < seconds <= 30
        tell(f"kill -9 c{seed}")
        if seed == 8:
            raise error

    seeds: list[int] = []
    assert main(["--minutes", "0.5", "--seed", "7"], run) == 1
    assert seeds == [7, 8]
    *faults, last = capsys.readouterr().out.splitlines()
    assert ["kill -9 c7" in faults[0], "kill -9 c8" in faults[1]] == [True, True]
    assert f"FAILED with --seed 8: {type(error).__name__}: " in last
    assert str(error) in last


@pytest.mark.parametrize("minutes", ["0", "-1", "ten"])
def test_a_soak_of_no_time_proves_nothing(capsys: pytest.CaptureFixture[str], minutes: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--minutes", minutes])
    assert ended.value.code == 2
    assert "--minutes" in capsys.readouterr().err.splitlines()[-1]
