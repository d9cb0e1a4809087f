"""The page over a real network: what it shows is what is, as it happens, without a reload."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.async_api import Route, expect

from runnel.common.errors import StorageFull
from runnel.reducer.engine import engine as engine_module
from runnel.reducer.engine.runner import SessionRunner
from tests.browser.browsing import Visit, browser, visit
from tests.eventually import eventually
from tests.network.local_network import ADD_CONSTANT, LocalNetwork, network, write_package

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SEED: dict[str, np.ndarray[Any, Any]] = {"w": np.zeros((3, 2), np.float32)}
# Waits for a file that the test makes, so that there is a round to look at for as long as it takes.
HELD = """
import os, time
while not os.path.exists(os.path.join(os.path.dirname(os.environ["RUNNEL_DATA"]), "go")):
    time.sleep(0.02)
"""
FAILS_AT_TWO = """
import os, sys
print("looking for the data")
if os.environ["RUNNEL_CLIENT_NAME"] == "site-2":
    print("there is no data today", file=sys.stderr)
    sys.exit(3)
"""


async def prepared(net: LocalNetwork, train: str = "") -> tuple[str, str]:
    package = await net.push_package(write_package(net.folder / "package", train=train + ADD_CONSTANT))
    return package, await net.push_model(SEED)


async def mark(look: Visit) -> None:
    await look("() => { window.notReloaded = true }")


async def marked(look: Visit) -> bool:
    return bool(await look("() => window.notReloaded === true"))


def cells(look: Visit, table: str, row: str) -> Any:
    return look.page.get_by_role("table", name=table).get_by_role("row").filter(has_text=row).get_by_role("cell")


async def test_a_session_is_watched_from_its_start_to_its_end(tmp_path: Path) -> None:
    async with network(tmp_path, combiners=2, clients=3) as net, browser() as started:
        package, seed = await prepared(net, HELD)
        async with visit(started, net.reducer.url) as look:
            page = look.page
            await mark(look)
            picture = page.get_by_role("img", name=re.compile("Reducer with 2 combiners and 3 clients, 0 away"))
            await expect(picture).to_be_visible()
            for name in ("c1", "c2", "site-1", "site-2", "site-3"):
                await expect(picture.get_by_text(name, exact=True)).to_be_visible()
            await expect(page.get_by_text("No session yet.")).to_be_visible()

            session = await net.start_session(package, seed, rounds=4, name="first try", min_clients=3)
            await expect(picture.get_by_text("running", exact=True)).to_have_count(3)
            await expect(picture.get_by_text("training", exact=True)).to_be_visible()
            await page.get_by_role("link", name="first try").first.click()
            await expect(page.get_by_role("heading", name="first try running")).to_be_visible()
            await expect(page.get_by_text("0 of 4 rounds")).to_be_visible()
            await expect(page.get_by_text("round 1: training, 0 of 3 in")).to_be_visible()

            (tmp_path / "go").touch()
            await expect(page.get_by_role("heading", name="first try finished")).to_be_visible()
            await expect(page.get_by_text("4 of 4 rounds")).to_be_visible()
            shown = await net.session(session)
            assert shown["status"] == "finished"
            await expect(page.get_by_role("table", name="Rounds").get_by_role("row")).to_have_count(5)
            for made in shown["rounds"]:
                row = (
                    page.get_by_role("table", name="Rounds")
                    .get_by_role("row")
                    .filter(has=page.get_by_role("link", name=f"Clients of round {made['round']}", exact=True))
                )
                numbers = await row.locator("data").evaluate_all("all => all.map((each) => Number(each.value))")
                assert numbers == list(made["metrics"].values())
                assert (await row.get_by_role("cell").all_inner_texts())[:3] == [
                    str(made[name]) for name in ("updates", "late", "failed")
                ]
                assert await row.get_by_role("link", name=made["model"]).count() == 1
            points = await page.locator("polyline.validate").get_attribute("points")
            assert points is not None
            assert len(points.split()) == 4
            curve = page.get_by_role("slider", name="mean over the rounds")
            await expect(curve).to_have_attribute("aria-valuetext", "round 4: validate 8")
            await curve.press("ArrowLeft")
            await expect(curve).to_have_attribute("aria-valuetext", "round 3: validate 6")
            assert await marked(look)

            await page.get_by_role("link", name="Clients of round 2").click()
            with_clients = (await net.session(session, clients=True))["rounds"][1]["clients"]
            table = page.get_by_role("table", name="Clients of the round")
            await expect(table.get_by_role("row")).to_have_count(len(with_clients) + 1)
            told = [
                (each["client"], each["work"], each["status"], f"{each['weight']:g}")
                for each in with_clients  # in the order of the API
            ]
            rows = await table.locator("tbody tr").all()
            texts = [await row.locator("th, td").all_inner_texts() for row in rows]
            assert [tuple(row[:4]) for row in texts] == told

            await page.get_by_role("link", name="Network").click()
            row = cells(look, "Newest sessions", "first try")
            await expect(row.nth(1)).to_contain_text("finished")
            await expect(row.nth(2)).to_contain_text("4 / 4")
            assert await row.nth(3).locator("data").get_attribute("value") == "8"
            assert await marked(look)


async def test_a_page_of_which_a_part_was_lost_is_asked_for_again(tmp_path: Path) -> None:
    async with network(tmp_path, combiners=0, clients=0) as net, browser() as started, visit(started) as look:
        lost: list[str] = []

        async def lose(route: Route) -> None:
            if lost:
                await route.continue_()
            else:
                lost.append(route.request.url)
                await route.abort("internetdisconnected")

        await look.page.route(re.compile("/web/chart.js"), lose)
        await look.goto(net.reducer.url)
        assert len(lost) == 1


async def test_an_answer_older_than_the_news_does_not_undo_them(tmp_path: Path) -> None:
    async with network(tmp_path, combiners=1, clients=1) as net, browser() as started:
        package, seed = await prepared(net, HELD)
        answered, told = asyncio.Event(), asyncio.Event()

        async def slow(route: Route) -> None:
            answer = await route.fetch()
            answered.set()
            await told.wait()
            await route.fulfill(response=answer)

        async with visit(started, net.reducer.url) as look:
            await look.page.route(re.compile("/sessions/ses-"), slow)
            await net.start_session(package, seed, rounds=1, min_clients=2)
            await answered.wait()
            await expect(look.page.get_by_role("img").get_by_text("selecting", exact=True)).to_be_visible()
            await net.start_client("site-2")
            await expect(look.page.get_by_role("img").get_by_text("training", exact=True)).to_be_visible()
            async with look.page.expect_response(re.compile("/sessions/ses-")):
                told.set()
            await asyncio.sleep(0.5)  # for the page to take it in
            await expect(look.page.get_by_role("img").get_by_text("training", exact=True)).to_be_visible()
            (tmp_path / "go").touch()


async def test_the_buttons_stop_resume_and_extend(tmp_path: Path) -> None:
    async with network(tmp_path, combiners=1, clients=1) as net, browser() as started:
        package, seed = await prepared(net, HELD)
        session = await net.start_session(package, seed, rounds=2)
        async with visit(started, f"{net.reducer.url}/#/sessions/{session}") as look:
            page = look.page
            stop = page.get_by_role("button", name="Stop", exact=True)
            await stop.click()
            await expect(page.get_by_role("dialog")).to_contain_text("What is under way is called off")
            await page.keyboard.press("Escape")
            await expect(page.get_by_role("dialog")).to_have_count(0)
            assert (await net.session(session))["status"] == "running"
            await stop.click()
            yes = page.get_by_role("button", name="Stop the session")
            await expect(yes).to_be_visible()
            # Nobody was asked to stop it before.
            assert [each.url for each in look.requests if each.method == "POST"] == []
            await yes.click()
            await expect(page.get_by_role("heading", level=1)).to_contain_text("stopped")
            assert (await net.session(session))["status"] == "stopped"
            await expect(stop).to_have_count(0)

            (tmp_path / "go").touch()
            await page.get_by_role("button", name="Resume").click()
            await expect(page.get_by_role("heading", level=1)).to_contain_text("finished")
            await expect(page.get_by_text("2 of 2 rounds")).to_be_visible()
            await page.get_by_label("Rounds to add").fill("3")
            await page.get_by_role("button", name="Extend").click()
            await expect(page.get_by_text("5 of 5 rounds")).to_be_visible()
            view = await net.until_ended(session)
            assert (view["config"]["rounds"], len(view["rounds"])) == (5, 5)


async def test_why_a_client_failed_is_told_with_its_log(tmp_path: Path) -> None:
    async with network(tmp_path, combiners=1, clients=2) as net, browser() as started:
        package, seed = await prepared(net, FAILS_AT_TWO)
        session = await net.start_session(package, seed, rounds=2, min_clients=2, retries=0)
        assert (await net.until_ended(session))["status"] == "failed"
        async with visit(started, f"{net.reducer.url}/#/sessions/{session}?round=1") as look:
            page = look.page
            reason = str((await net.session(session))["reason"])
            await expect(page.locator(".reason")).to_have_text(reason)
            failed = page.get_by_role("table", name="Clients of the round").get_by_role("row").filter(has_text="site-2")
            await failed.locator("summary").click()
            await expect(failed).to_contain_text("there is no data today")
            log = page.get_by_role("table", name="Log lines")
            await expect(log.get_by_text("looking for the data")).to_have_count(2)
            await expect(log.get_by_text("there is no data today")).to_have_count(1)
            await page.get_by_label("Client", exact=True).select_option("site-1")
            await expect(log.get_by_text("looking for the data")).to_have_count(1)
            await expect(log.get_by_text("there is no data today")).to_have_count(0)


async def test_goes_on_after_the_reducer_was_away(tmp_path: Path) -> None:
    async with network(tmp_path, combiners=1, clients=2) as net, browser() as started:
        package, seed = await prepared(net, HELD)
        session = await net.start_session(package, seed, rounds=3, min_clients=2)
        async with visit(started, net.reducer.url) as look:
            page = look.page
            await mark(look)
            await net.start_client("newcomer")
            await expect(page.get_by_text("newcomer attached")).to_be_visible()
            await page.goto(f"{net.reducer.url}/#/sessions/{session}")
            await expect(page.get_by_text("round 1: training")).to_be_visible()
            await net.stop("reducer")
            await expect(page.get_by_role("status").filter(has_text="reconnecting")).to_be_visible()
            await expect(page.get_by_role("alert")).to_contain_text("The reducer does not answer.")
            # What was known stays to be seen meanwhile.
            await expect(page.get_by_text("0 of 3 rounds")).to_be_visible()
            await net.start_reducer()
            await net.until_attached("c1", "site-1", "site-2", "newcomer")
            await look.live()
            await expect(page.get_by_role("alert")).to_be_empty()
            (tmp_path / "go").touch()
            await expect(page.get_by_text("3 of 3 rounds")).to_be_visible()
            await expect(page.get_by_role("heading", level=1)).to_contain_text("finished")
            assert await marked(look)
            streams = [each for each in look.requests if each.headers.get("accept") == "text/event-stream"]
            resumed = [int(each.headers["last-event-id"]) for each in streams]
            assert resumed[-1] > resumed[0]
            assert resumed == sorted(resumed)
            # Each event of the session was told once, those of before and after the restart alike.
            await page.get_by_role("link", name="Network").click()
            happened = page.get_by_role("list").filter(has_text="committed round")
            for number in (1, 2, 3):
                await expect(happened.get_by_text(f"committed round {number}:")).to_have_count(1)


async def test_nodes_that_come_and_go(tmp_path: Path) -> None:
    async with LocalNetwork(tmp_path) as net, browser() as started, visit(started, net.reducer.url) as look:
        page = look.page
        command = f"runnel client --network {net.reducer.rpc_address} --name site-1 --data default=PATH --insecure"
        await expect(page.get_by_text(command)).to_be_visible()
        await net.start_combiner("c1")
        await net.start_client("site-1")
        await expect(page.get_by_role("img", name=re.compile("1 combiner and 1 client, 0 away"))).to_be_visible()
        await expect(page.get_by_text(command)).to_have_count(0)
        await net.stop("site-1")
        await expect(page.get_by_role("img", name=re.compile("1 combiner and 0 clients, 1 away"))).to_be_visible()
        await page.get_by_role("link", name="Nodes").click()
        await expect(cells(look, "Nodes", "site-1").nth(1)).to_have_text("away")
        await expect(cells(look, "Nodes", "c1").nth(2)).to_have_text("reducer")


async def test_a_model_is_shown_with_its_parents_and_downloaded(tmp_path: Path) -> None:
    async with network(tmp_path, combiners=1, clients=1) as net, browser() as started:
        package, seed = await prepared(net)
        session = await net.start_session(package, seed, rounds=3)
        model = (await net.until_ended(session))["model"]
        async with visit(started, f"{net.reducer.url}/#/models/{model}", accept_downloads=True) as look:
            chain = look.page.get_by_role("listitem").filter(has=look.page.locator("a.code"))
            await expect(chain).to_have_count(4)
            await expect(chain.last).to_contain_text(f"{seed} seed")
            async with look.page.expect_download() as saving:
                await look.page.get_by_role("button", name=f"Download {model}.npz").click()
            saved = await (await saving.value).path()
            assert (await saving.value).suggested_filename == f"{model}.npz"
            assert saved.read_bytes() == (await net.http.get(f"/models/{model}/content")).content
            await look.page.get_by_role("link", name="Packages").click()
            await expect(look.page.get_by_role("button", name=re.compile("Download"))).to_have_count(1)


async def test_a_session_that_starts_elsewhere_comes_up_in_the_list(tmp_path: Path) -> None:
    async with network(tmp_path, combiners=0, clients=1) as net, browser() as started:
        package, seed = await prepared(net)
        async with visit(started, f"{net.reducer.url}/#/sessions") as look:
            await expect(look.page.get_by_text("runnel session start --package PACKAGE")).to_be_visible()
            for number in (1, 2):
                session = await net.start_session(package, seed, rounds=2, name=f"number {number}")
                await net.until_ended(session)
            rows = look.page.get_by_role("table", name="Sessions").locator("tbody tr")
            await expect(rows).to_have_count(2)
            await expect(rows.first).to_contain_text("number 2")
            await eventually(lambda: rows.last.get_by_text("2 / 2").is_visible(), timeout_s=30)


async def test_a_session_that_waits_for_the_reducer_tells_why_until_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at, room, run = asyncio.Event(), asyncio.Event(), SessionRunner.run

    async def with_room(runner: SessionRunner) -> None:
        await looked_at.wait()
        if not room.is_set():
            raise StorageFull("There is no room for the next model.")
        await run(runner)

    monkeypatch.setattr(SessionRunner, "run", with_room)
    monkeypatch.setattr(engine_module, "_STALLED_PAUSE_S", 0.5)
    async with network(tmp_path) as net, browser() as started, visit(started, net.reducer.url) as look:
        await mark(look)
        package, seed = await prepared(net)
        await net.start_session(package, seed, rounds=1, name="large")
        await look.page.get_by_role("link", name="large").first.click()
        await expect(look.page.get_by_role("heading", name="large running")).to_be_visible()
        why = look.page.get_by_text("the reducer tries again: There is no room for the next model.")
        await expect(why).to_have_count(0)
        looked_at.set()
        await expect(why).to_be_visible()
        # No round has begun, so there is none whose lines could be asked for.
        log = look.page.get_by_role("region", name="Log")
        await expect(log.get_by_text("Nobody has written a line here.")).to_be_visible()
        await expect(log.get_by_role("alert")).to_have_count(0)
        room.set()
        await expect(look.page.get_by_role("heading", name="large finished")).to_be_visible()
        await expect(why).to_have_count(0)
        assert await marked(look)
