"""How the page is: on a phone and on a desk, by keyboard, read out; and its parts that need no network."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from runnel.common.protocol import RunState
from runnel.reducer.domain.task_views import RunLineView
from runnel.reducer.domain.values import ClientContribution, LogView, NodeView
from runnel.reducer.http import round_document
from tests.browser.browsing import browser, visit
from tests.doubles.reducer_service import NOW
from tests.doubles.serving import Served, serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

TASK = "tasks/tsk-0000000000?run=run-0000000002"
LONG = "a-client-with-a-very-long-name-that-goes-on-and-on-and-on-0123456789"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as it:
        yield it


def node(name: str, kind: str, attached_to: str | None) -> NodeView:
    return NodeView(
        name=name,
        node_id=name,
        kind=kind,
        organisation="default",
        status="attached" if attached_to else "away",
        attached_to=attached_to,
        version="0.1.0",
        platform="Linux x86_64, Python 3.11",
        address=None,
        first_seen_at=NOW,
        last_seen_at=NOW,
    )


async def filled(served: Served) -> str:
    """Have something of everything, with a name that is longer than a phone is wide; return the session."""
    reducer = served.reducer
    reducer.members += [node("east", "combiner", "reducer"), node("deeper", "combiner", "east")]
    reducer.members += [node(f"site-{n}", "client", ("east", "deeper", "reducer", None)[n % 4]) for n in range(12)]
    reducer.members += [node(LONG, "client", "deeper")]
    package = (await served.http.post("/packages", content=b"a", params={"filename": "p.tar.gz"})).json()["digest"]
    seed = (await served.http.post("/models", content=b"m")).json()["model"]
    wanted = {"package": package, "seed": seed, "rounds": 3, "name": "x" * 100}
    session = str((await served.http.post("/sessions", json=wanted)).json()["session"])
    for _ in range(2):
        reducer.commit(
            session,
            lambda view: round_document(replace(view, clients=())),
            clients=(
                ClientContribution(
                    client=LONG, work="train", status="failed", error="it failed " * 30, log_tail="last words\n" * 30
                ),
            ),
        )
    reducer.lines += [
        LogView(id=n, session=session, round=2, work="train", client=LONG, at=NOW, stream="stdout", text="word " * 60)
        for n in range(1, 5)
    ]
    await served.http.post("/tokens", json={"role": "client", "name": LONG})
    reducer.sites = [LONG, "site-1", "site-2", "site-3", "site-4"]
    described = {"name": "y" * 100, "description": LONG, "executors": [{"image": f"registry.example.org/{LONG}:1"}]}
    task = (await served.http.post("/tasks", json={"spec": described, "sites": reducer.sites})).json()
    ends = (RunState.FAILED, RunState.DONE, RunState.AWAITING_RELEASE, RunState.REJECTED, RunState.RUNNING)
    for run, state in zip(task["runs"], ends, strict=True):
        reducer.give_out(run["run"], "output", b"3", "application/zip")
        reducer.move(run["run"], state, error=f"{LONG} failed " * 10, exit_code=3, elapsed_s={"run": 3.0})
    line = RunLineView(id=1, run=task["runs"][2]["run"], at=NOW, stream="stdout", text="word " * 60)
    reducer.lines_of_runs[line.run] = [line]
    return session


def views(session: str, model: str) -> list[str]:
    return [
        "",
        "sessions",
        f"sessions/{session}?round=1",
        "tasks",
        TASK,
        "models",
        f"models/{model}",
        "packages",
        "nodes",
        "tokens",
        "nowhere",
    ]


NAMELESS = """() => [...document.querySelectorAll("a, button, input, select, svg[role], [tabindex='0'], table")]
    .filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim() || each.labels?.length))
    .map((each) => each.outerHTML.slice(0, 200))"""
UNHEADED = """() => [...document.querySelectorAll("table")].filter((each) =>
    each.querySelectorAll("thead th[scope=col]").length !== each.querySelector("tbody tr")?.children.length)
    .map((each) => each.getAttribute("aria-label"))"""


@pytest.mark.parametrize("width", [390, 1440])
async def test_fits_the_window_and_everything_has_a_name(served: Served, width: int) -> None:
    session = await filled(served)
    model = (await served.http.get(f"/sessions/{session}")).json()["model"]
    async with browser() as started:
        for view in views(session, model):
            async with visit(started, f"{served.url}/#/{view}", width=width) as look:
                await expect(look.page.get_by_role("heading", level=1)).to_have_count(1)
                await expect(look.page.get_by_text("Asking …")).to_have_count(0)
                assert await look("() => document.documentElement.scrollWidth") <= width, view
                assert await look(NAMELESS) == [], view
                assert await look(UNHEADED) == [], view
                assert (await look.page.title()).endswith(" · Runnel")


CONTRAST = """() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = channels(colour).map((c) => c / 255)
            .map((c) => (c <= 0.04 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (each) => {
        for (let at = each; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (channels(colour)[3] !== 0) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const written = (each) => [...each.childNodes].some((n) => n.nodeType === 3 && n.nodeValue.trim());
    return [...document.querySelectorAll("#app *")]
        .filter((each) => !each.closest("svg") && written(each))
        .map((each) => {
            const [a, b] = [light(getComputedStyle(each).color), light(ground(each))].sort((x, y) => y - x);
            return [(a + 0.05) / (b + 0.05), each.outerHTML.slice(0, 120)];
        })
        .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_stands_out_from_its_ground(served: Served, scheme: Any) -> None:
    session = await filled(served)
    async with browser() as started:
        for view in ("", f"sessions/{session}?round=1", "tasks", TASK, "nodes", "tokens"):
            async with visit(started, f"{served.url}/#/{view}", color_scheme=scheme) as look:
                await expect(look.page.get_by_text("Asking …")).to_have_count(0)
                assert await look(CONTRAST) == [], view
                ground = await look("() => getComputedStyle(document.body).backgroundColor")
                assert (sum(map(int, re.findall(r"\d+", ground))) < 380) == (scheme == "dark")


async def test_is_used_by_keyboard(served: Served) -> None:
    await filled(served)
    async with browser() as started, visit(started, served.url) as look:
        page = look.page
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("button", name="Skip to the content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("#main")).to_be_focused()
        for _ in range(2):
            await page.keyboard.press("Shift+Tab")
        nodes = page.get_by_role("link", name="Nodes", exact=True)
        await nodes.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Nodes")).to_be_visible()
        await expect(page.locator("#main")).to_be_focused()
        await expect(nodes).to_have_attribute("aria-current", "page")
        # What happens meanwhile takes away neither the focus nor what is typed.
        await page.goto(f"{served.url}/#/tokens")
        await page.get_by_role("textbox", name="Name").press_sequentially("half a na")
        served.reducer.happen("node.attached", None, {"name": "newcomer"})
        served.reducer.happen("token.created", None, {"token": "tok-1", "role": "client", "name": ""})
        await page.goto(f"{served.url}/#/tokens")
        await page.get_by_role("textbox", name="Name").press_sequentially("me")
        assert await page.get_by_role("textbox", name="Name").input_value() == "half a name"


async def test_many_clients_are_dots(served: Served) -> None:
    served.reducer.members += [node(f"site-{n:04}", "client", "reducer") for n in range(2500)]
    async with browser() as started, visit(started, served.url) as look:
        await expect(look.page.locator(".picture .dot")).to_have_count(2500)
        await expect(look.page.get_by_role("img", name=re.compile("and 2.500 clients"))).to_be_visible()


# ---- parts


async def module(served: Served, body: str, argument: Any = None) -> Any:
    async with browser() as started, visit(started, served.url) as look:
        return await look(f"async (given) => {{ {body} }}", argument)


async def test_events_are_read_wherever_the_stream_is_cut(served: Served) -> None:
    stream = (
        '\ufeff: comment\n\nretry: 250\r\nid: 7\revent: round.committed\r\ndata: {"a":\ndata:1}\n\n'
        "event: nothing\n\ndata: é😀\nid\n\nunknown: x\ndata\n\nid: 9\u0000\ndata:  two\n\ndata: not yet\n"
    )
    expected = [
        {"kind": "round.committed", "data": '{"a":\n1}', "id": "7"},
        {"kind": "message", "data": "é😀", "id": ""},
        {"kind": "message", "data": "", "id": ""},
        {"kind": "message", "data": " two", "id": ""},
    ]
    read = await module(
        served,
        """const { EventParser } = await import("./web/stream.js");
        const results = new Set();
        for (let at = 0; at <= given.length; at += 1) {
            for (const next of [at, at + 1, at + 5]) {
                const parser = new EventParser();
                const pieces = [given.slice(0, at), given.slice(at, next), given.slice(next)];
                results.add(JSON.stringify([pieces.flatMap((piece) => parser.push(piece)), parser.retryMs]));
            }
        }
        return [...results];""",
        stream,
    )
    assert [json.loads(each) for each in read] == [[expected, 250]]


async def test_a_tree_of_nodes_that_move_has_no_end_in_itself(served: Served) -> None:
    nodes = [
        {"name": name, "kind": kind, "status": "attached", "attached_to": above}
        for name, kind, above in (
            ("a", "combiner", "b"),
            ("b", "combiner", "a"),
            ("c", "combiner", "a"),
            ("self", "combiner", "self"),
            ("x", "client", "c"),
            ("y", "client", "nobody"),
            ("z", "client", "reducer"),
        )
    ]
    root = await module(
        served,
        """const { tree, layout } = await import("./web/picture.js");
        const grown = tree(given);
        const place = layout(grown, 390);
        const names = (hub) => [hub.name, hub.clients.map((c) => c.name), hub.hubs.map(names)];
        return [names(grown.root), place.hubs.length, Number.isFinite(place.height)];""",
        nodes,
    )
    tree, hubs, finite = root
    assert tree[1] == ["y", "z"]
    assert sorted(each[0] for each in tree[2]) == ["a", "b", "c", "self"]
    assert (hubs, finite) == (5, True)


async def test_numbers_read_well(served: Served) -> None:
    expected = [
        (0, "0"),
        (1, "1"),
        (12345, "12\u202f345"),
        (0.97123, "0.9712"),
        (123.456789, "123.46"),
        (0.00001234, "1.23e-5"),
        (-0.5, "-0.5"),
        (12345678.5, "1.23e+7"),
        (None, ""),
    ]
    values = [value for value, _ in expected]
    read = await module(served, 'return given.map((await import("./web/format.js")).short);', values)
    assert read == [text for _, text in expected]


async def test_ticks_are_round_numbers_within_the_range(served: Served) -> None:
    ranges = [(0, 1), (0.83, 0.97), (-3, 2e6), (1, 500), (5, 5), (1e-9, 3e-9)]
    code = 'const { ticks } = await import("./web/chart.js"); return given.map(([low, high]) => ticks(low, high, 4));'
    for (low, high), found in zip(ranges, await module(served, code, ranges), strict=True):
        assert all(low - 1e-12 <= each <= high * (1 + 1e-9) + 1e-12 for each in found), (low, high, found)
        assert (2 if high > low else 1) <= len(found) <= 6
