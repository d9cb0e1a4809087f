"""How far clients are, as a combiner tells it."""

from __future__ import annotations

import pytest

from runnel.combiner.stage_news import StageNews
from runnel.common.protocol import AssignmentKey, Progress, Stage, Upward, Work
from tests.eventually import eventually

pytestmark = pytest.mark.unit

KEY = AssignmentKey(session_id="ses-1", round=1, work=Work.TRAIN)


class Way:
    """Keeps what goes up."""

    def __init__(self) -> None:
        self.offered: list[Upward] = []
        self.sent: list[Upward] = []

    def send(self, message: Upward) -> bool:
        self.sent.append(message)
        return True

    def offer(self, message: Upward) -> bool:
        self.offered.append(message)
        return True


def progress(client: str, stage: Stage, *, order: str = "ord-1", detail: str = "") -> Progress:
    return Progress(key=KEY, order_id=order, client=client, stage=stage, detail=detail)


def told(way: Way) -> list[tuple[str, tuple[str, ...], Stage]]:
    return [(each.order_id, each.clients, each.stage) for each in way.offered if isinstance(each, Progress)]


def counted(way: Way) -> list[tuple[str, tuple[str, ...]]]:
    return [(each.order_id, each.clients) for each in way.sent if isinstance(each, Progress)]


async def test_the_newest_stage_of_each_client_is_told_once_for_all_that_are_there() -> None:
    way = Way()
    news = StageNews(way, pause_s=0.01)
    for client in ("a", "b", "c"):
        news.tell(progress(client, Stage.FETCHING))
    news.tell(progress("a", Stage.RUNNING))
    news.tell(progress("c", Stage.RUNNING))
    news.tell(progress("a", Stage.RUNNING, order="ord-2"))
    assert way.offered == []
    await eventually(lambda: way.offered)
    assert told(way) == [
        ("ord-1", ("b",), Stage.FETCHING),
        ("ord-1", ("a", "c"), Stage.RUNNING),
        ("ord-2", ("a",), Stage.RUNNING),
    ]


async def test_what_more_is_said_of_a_client_meanwhile_is_not_followed_by_an_earlier_stage() -> None:
    way = Way()
    news = StageNews(way, pause_s=0.01)
    for client in ("a", "b", "c"):
        news.tell(progress(client, Stage.PUSHING))
    news.outdated(progress("a", Stage.COUNTED))
    news.tell(progress("b", Stage.PUSHING, detail="no room"))
    assert told(way) == [("ord-1", ("b",), Stage.PUSHING)]
    await eventually(lambda: len(way.offered) > 1)
    assert told(way)[1:] == [("ord-1", ("c",), Stage.PUSHING)]


async def test_one_message_tells_of_a_thousand_clients() -> None:
    way = Way()
    news = StageNews(way, pause_s=0.0)
    for number in range(1_001):
        news.tell(progress(f"c{number}", Stage.RUNNING))
    await eventually(lambda: way.offered)
    assert [len(clients) for _, clients, _ in told(way)] == [1_000, 1]


async def test_nothing_is_told_once_the_way_up_is_gone() -> None:
    way = Way()
    news = StageNews(way, pause_s=0.0)
    news.tell(progress("a", Stage.RUNNING))
    news.close()
    news.tell(progress("b", Stage.RUNNING))
    await eventually(lambda: way.offered)
    assert told(way) == [("ord-1", ("b",), Stage.RUNNING)]


async def test_who_is_counted_is_told_together_sooner_and_never_dropped_for_want_of_room() -> None:
    way = Way()
    news = StageNews(way, pause_s=60.0, counted_pause_s=0.01)
    for client in ("a", "b", "c"):
        news.tell(progress(client, Stage.RUNNING))
    news.tell(progress("a", Stage.COUNTED))
    news.tell(progress("c", Stage.COUNTED))
    assert way.sent == []
    await eventually(lambda: way.sent)
    assert counted(way) == [("ord-1", ("a", "c"))]
    assert told(way) == [("ord-1", ("b",), Stage.RUNNING)]
    news.tell(progress("b", Stage.COUNTED, detail="no room above"))
    assert counted(way)[1:] == [("ord-1", ("b",))]


async def test_what_the_report_of_an_order_says_is_not_said_again() -> None:
    way = Way()
    news = StageNews(way, counted_pause_s=0.01)
    news.tell(progress("a", Stage.COUNTED))
    news.tell(progress("a", Stage.COUNTED, order="ord-2"))
    news.reported("ord-1")
    await eventually(lambda: way.sent)
    assert counted(way) == [("ord-2", ("a",))]
