"""Images of packages go by when they were used last and by their sizes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runnel.client.runtimes.docker_image_uses import ImageUses

pytestmark = pytest.mark.unit

NOW = 1_000_000_000.0  # long ago, so that what is used now is young
DAY_S = 86400.0
TAGS = ["a" * 64 + "-" + digit * 32 for digit in "0123"]


@pytest.fixture
def uses(tmp_path: Path) -> ImageUses:
    return ImageUses(tmp_path / "images")


def used(uses: ImageUses, folder: Path, tag: str, days_ago: float, size_bytes: int = 10) -> None:
    uses.note(tag, size_bytes)
    then = NOW - days_ago * DAY_S
    os.utime(folder / "images" / tag, (then, then))


def due(uses: ImageUses, most_bytes: int = 1000, most_days: float = 60) -> list[str]:
    return [one.tag for one in uses.due(most_bytes=most_bytes, most_days=most_days, now=NOW)]


def test_what_is_old_goes_and_then_the_oldest_while_it_is_too_much(uses: ImageUses, tmp_path: Path) -> None:
    assert due(uses) == []
    for tag, days in zip(TAGS, (1, 61, 3, 0), strict=True):
        used(uses, tmp_path, tag, days)
    assert due(uses) == [TAGS[1]]
    assert due(uses, most_bytes=20) == [TAGS[1], TAGS[2]]
    assert due(uses, most_bytes=5) == [TAGS[1], TAGS[2], TAGS[0]], "what was just used stays"
    uses.forget(TAGS[1])
    assert due(uses) == []


def test_a_use_makes_it_young_and_its_size_is_kept(uses: ImageUses, tmp_path: Path) -> None:
    used(uses, tmp_path, TAGS[0], 100, size_bytes=7)
    uses.note(TAGS[0], 99)
    assert due(uses) == []
    (only,) = uses._all()
    assert only.size_bytes == 7


def test_what_is_not_ours_or_spoilt_hurts_nobody(uses: ImageUses, tmp_path: Path) -> None:
    used(uses, tmp_path, TAGS[0], 100)
    (tmp_path / "images" / "notes.txt").write_text("x")
    (tmp_path / "images" / TAGS[1]).write_text("{")
    os.utime(tmp_path / "images" / TAGS[1], (NOW - 90 * DAY_S,) * 2)
    assert due(uses) == [TAGS[0], TAGS[1]]
    with pytest.raises(ValueError, match="no tag"):
        uses.note("../../x", 1)
