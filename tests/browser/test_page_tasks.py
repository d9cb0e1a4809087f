"""Tasks on the page: as they happen, by whom they may be changed, and how many of them there may be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from runnel.common.errors import EntryPointFailed
from runnel.common.protocol import LogLine, RunState, TaskNews, TaskOrder
from runnel.reducer.domain.task_views import RunLineView
from tests.browser.browsing import Visit, browser, visit
from tests.browser.test_page_access import sign_in
from tests.browser.test_page_text import CORPUS, HURT, UNHURT
from tests.doubles.reducer_service import NOW, OPERATOR_TOKEN, VIEWER_TOKEN
from tests.doubles.serving import Served, serving
from tests.doubles.task_client import TaskClient
from tests.network.local_network import LocalNetwork

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

IMAGE = "registry.example.org/age/histogram:1.4"


def wanted(name: str, sites: Sequence[str], **spec: Any) -> dict[str, Any]:
    return {"spec": {"name": name, "executors": [{"image": IMAGE}]} | spec, "sites": list(sites)}


def row(look: Visit, table: str, text: str) -> Any:
    return look.page.get_by_role("table", name=table).get_by_role("row").filter(has_text=text)


def fails(order: TaskOrder) -> dict[str, bytes]:
    raise EntryPointFailed("It ended with 3: there is no table <b>patients</b>.")


async def test_a_task_is_watched_and_its_results_are_approved(tmp_path: Path) -> None:
    async with (
        LocalNetwork(tmp_path) as net,
        browser() as started,
        visit(started, f"{net.reducer.url}/#/tasks") as look,
    ):
        page = look.page
        await expect(page.get_by_text("No task yet.")).to_be_visible()
        await expect(page.get_by_text("runnel task run IMAGE --site SITE")).to_be_visible()
        rpc = net.reducer.rpc_address
        async with (
            TaskClient(rpc, "bergen", review=True) as bergen,
            TaskClient(rpc, "cluj", produce=fails),
            TaskClient(rpc, "oslo") as oslo,
        ):
            await net.until_attached("bergen", "cluj", "oslo")
            bergen.gate.clear()
            oslo.gate.clear()
            made = await net.http.post("/tasks", json=wanted("ages", ["bergen", "cluj", "oslo"]))
            assert made.status_code == 201, made.text
            await expect(row(look, "Tasks", "ages")).to_contain_text("2 running, 1 failed")
            await expect(row(look, "Tasks", "ages")).to_contain_text(IMAGE)
            await page.get_by_role("link", name="ages", exact=True).click()
            await expect(page.get_by_role("heading", name="ages running")).to_be_visible()
            await expect(row(look, "Sites", "cluj")).to_contain_text(
                "It ended with 3: there is no table <b>patients</b>."
            )
            await expect(page.get_by_text("1 of 3 sites")).to_be_visible()
            await expect(row(look, "Sites", "oslo")).not_to_contain_text("looking for the image")

            await page.get_by_role("link", name="bergen ▸").click()
            await expect(page.get_by_role("heading", name="At bergen running")).to_be_focused()
            await expect(page.get_by_role("table", name="Log lines")).to_contain_text("hello from bergen")
            await expect(page.get_by_role("button", name="Approve")).to_have_count(0)
            line = LogLine(at_ms=1000, stream="stderr", text="<b>half</b> of it")
            (run_id,) = bergen.held
            bergen.link.send(TaskNews(run_id=run_id, client="bergen", state=RunState.RUNNING, lines=(line,)))
            await expect(page.get_by_role("table", name="Log lines")).to_contain_text("<b>half</b> of it")
            bergen.gate.set()
            await expect(page.get_by_text("Somebody has to look at the results of bergen")).to_be_visible()
            await page.get_by_label("Why").fill("counts are large enough")
            await page.get_by_role("button", name="Approve").click()
            await page.get_by_role("dialog").get_by_role("button", name="Approve").click()
            await expect(page.get_by_role("heading", name="At bergen done")).to_be_visible()
            await expect(page.get_by_text("Somebody has to look")).to_have_count(0)
            steps = page.get_by_role("list", name="How it went").locator("strong")
            states = ["queued", "assigned", "preparing", "running", "awaiting-release", "done"]
            await expect(steps).to_have_text(states)
            async with page.expect_download() as saving:
                await page.get_by_role("button", name="Download bergen-stdout.txt").click()
            saved = await (await saving.value).path()
            assert saved.read_text().endswith(" at bergen\n")

            await page.get_by_role("link", name="running 1").click()
            await expect(page.get_by_role("table", name="Sites").locator("tbody tr")).to_have_count(1)
            await page.get_by_role("button", name="Cancel the task").click()
            await page.get_by_role("dialog").get_by_role("button", name="Cancel the task").click()
            await expect(page.get_by_role("heading", name="ages cancelled")).to_be_visible()
            await expect(page.get_by_role("button", name="Cancel the task")).to_have_count(0)


# ---- without a network


async def start(served: Served, name: str, sites: Sequence[str], **spec: Any) -> dict[str, Any]:
    served.reducer.sites = list(dict.fromkeys([*served.reducer.sites, *sites]))
    answer = await served.http.post("/tasks", json=wanted(name, sites, **spec))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def moved(served: Served, run: dict[str, Any], state: RunState, **changes: Any) -> None:
    served.reducer.move(run["run"], state, **changes)
    told = {"run": run["run"], "site": run["site"], "state": state.value}
    served.reducer.happen("run.state", run["task"], told)


async def test_who_may_only_look_neither_decides_nor_reads_results(tmp_path: Path) -> None:
    async with serving(tmp_path, insecure=False) as served, browser() as started:
        task = await start(served, "ages", ["site-1"])
        run = task["runs"][0]
        served.reducer.give_out(run["run"], "stdout", b"3", "text/plain")
        await moved(served, run, RunState.AWAITING_RELEASE)
        for token, number in ((VIEWER_TOKEN, 0), (OPERATOR_TOKEN, 1)):
            async with visit(started) as look:
                await look.page.goto(f"{served.url}/#/tasks/{task['task']}?run={run['run']}")
                await sign_in(look, token)
                await look.live()
                await expect(look.page.get_by_role("heading", name="At site-1 awaiting-release")).to_be_visible()
                for name in ("Approve", "Reject", "Cancel the task", "Download site-1-stdout.txt"):
                    await expect(look.page.get_by_role("button", name=name)).to_have_count(number)
                await expect(look.page.get_by_role("heading", name="What it wrote")).to_have_count(number)


async def test_what_strangers_write_about_tasks_stays_text(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, browser() as started:
        tags = {"k": CORPUS[0], CORPUS[1]: ""}
        texts = [text.replace("\u0000", "") for text in CORPUS]
        task = await start(served, texts[0], texts, description=texts[1], tags=tags)
        for number, (text, run) in enumerate(
            zip(texts, sorted(task["runs"], key=lambda r: texts.index(r["site"])), strict=True)
        ):
            state = (RunState.FAILED, RunState.RUNNING)[number % 2]
            served.reducer.lines_of_runs[run["run"]] = [
                RunLineView(id=place, run=run["run"], at=NOW, stream=line, text=line)
                for place, line in enumerate(texts, 1)
            ]
            served.reducer.give_out(run["run"], text, b"3", text)
            say = {"error": text, "error_code": text, "log_tail": text, "image_digest": text, "elapsed_s": {text: 1.0}}
            await moved(served, run, state, detail=text, **say)
        first = next(run for run in task["runs"] if run["site"] == texts[0])
        told = {"task": task["task"], "stages": {text: f"running: {text}" for text in texts}}
        for view in ("tasks", f"tasks/{task['task']}?run={first['run']}"):
            async with visit(started, f"{served.url}/#/{view}") as look:
                served.reducer.progress(task["task"], told)
                if view != "tasks":
                    await expect(look.page.get_by_role("heading", level=1)).to_contain_text(texts[0])
                    sites = look.page.get_by_role("table", name="Sites").locator("tbody th")
                    await expect(sites).to_have_count(len(texts))
                    assert {each.rstrip(" ▾▸") for each in await sites.all_text_contents()} == {
                        t.rstrip() for t in texts
                    }
                    lines = look.page.get_by_role("table", name="Log lines").locator("td.text")
                    await expect(lines).to_have_count(len(texts))
                    assert await lines.all_text_contents() == texts
                    await look.page.locator("summary").click()
                else:
                    await expect(row(look, "Tasks", texts[0])).to_have_count(1)
                assert await look(HURT) == UNHURT, view
        async with visit(started, served.url) as look:
            await expect(look.page.get_by_role("list").filter(has_text="is failed at").first).to_be_visible()
            assert await look(HURT) == UNHURT


async def test_many_tasks_come_in_pages_and_a_large_one_is_read_seldom(tmp_path: Path) -> None:
    sites = [f"site-{number:04}" for number in range(1000)]
    async with serving(tmp_path) as served, browser() as started:
        large = await start(served, "large", sites)
        for number in range(60):
            await start(served, f"task {number}", ["site-1"])
        async with visit(started, f"{served.url}/#/tasks") as look:
            page = look.page
            rows = page.get_by_role("table", name="Tasks").locator("tbody tr")
            await expect(rows).to_have_count(50)
            await page.get_by_role("button", name="Show more").click()
            await expect(rows).to_have_count(61)
            # What happens meanwhile does not take away what is typed.
            await page.get_by_label("Name begins").press_sequentially("lar")
            await moved(served, large["runs"][0], RunState.RUNNING)
            await expect(row(look, "Tasks", "large")).to_contain_text("1 running")
            await page.get_by_label("Name begins").press_sequentially("ge")
            await page.get_by_label("Name begins").press("Enter")
            await expect(rows).to_have_count(1)

            await page.get_by_role("link", name="large").click()
            runs = page.get_by_role("table", name="Sites").locator("tbody tr")
            await expect(runs).to_have_count(50)
            await expect(page.get_by_role("link", name="queued 999")).to_be_visible()
            asked = len(look.requests)
            for run in large["runs"][:200]:
                await moved(served, run, RunState.DONE)
            # What is told is shown at once; that it was told 200 times is no reason to read all of it 200 times.
            await expect(page.get_by_role("link", name="done 200")).to_be_visible()
            assert len(look.requests) - asked < 20
            await page.get_by_role("link", name="queued 800").click()
            await page.get_by_role("button", name="Show more of 800").click()
            await expect(runs).to_have_count(250)
