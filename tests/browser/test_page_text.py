"""What strangers write is text on the page and nothing else: names, metrics, logs, reasons, whatever they hold."""

from __future__ import annotations

import html
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from runnel.reducer.domain.values import ClientContribution, LogView, NodeView
from runnel.reducer.http import round_document
from tests.browser.browsing import browser, visit
from tests.doubles.reducer_service import NOW
from tests.doubles.serving import Served, serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

CORPUS = [
    "<script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 1'>",
    '"><svg onload=window.hurt=1>',
    "'><iframe srcdoc='<script>parent.hurt=1</script>'>",
    "javascript:window.hurt=1",
    "</title><style>*{display:none}</style>",
    "{{constructor.constructor('window.hurt=1')()}}${window.hurt=1}",
    "&lt;b&gt;entities stay &amp; as they are&lt;/b&gt;",
    "\u202eright to left\u202c and \u0000\u0001 control\u2028characters",
    "__proto__",
    "constructor",
    "../../sessions?round=1#/tokens",
]
# Looks like what the page makes its elements of.
LOOKALIKE: dict[str, Any] = {
    "tag": "img",
    "props": {"src": "x", "onerror": "window.hurt = 1"},
    "children": ["<b>"],
    "nodeType": 1,
}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as it:
        yield it


async def hostile(served: Served) -> str:
    """Fill every place that somebody else fills; return the session."""
    reducer, http = served.reducer, served.http
    package = (await http.post("/packages", content=b"a", params={"filename": CORPUS[0] + ".tar.gz"})).json()["digest"]
    seed = (await http.post("/models", content=b"m")).json()["model"]
    wanted = {
        "package": package,
        "seed": seed,
        "rounds": 3,
        "name": CORPUS[1],
        "client_settings": {CORPUS[0]: LOOKALIKE},
        "stop_when": "accuracy>=0.99",
    }
    session = str((await http.post("/sessions", json=wanted)).json()["session"])
    reducer.members.extend(
        NodeView(
            name=text,
            node_id=str(number),
            kind="client",
            organisation=text,
            status="attached" if number % 2 else "away",
            attached_to=text if number % 2 else None,
            version=text,
            platform=text,
            address=None,
            first_seen_at=NOW,
            last_seen_at=NOW,
        )
        for number, text in enumerate(CORPUS)
    )
    contributions = tuple(
        ClientContribution(
            client=text,
            work="train",
            status=("counted", "failed")[number % 2],
            weight=1.0,
            metrics={text: 0.5},
            extra={text: LOOKALIKE, "tag": "img"},
            elapsed_s={text: 1.0},
            error_code="failed" if number % 2 else None,
            error=text if number % 2 else None,
            log_tail=text if number % 2 else None,
        )
        for number, text in enumerate(CORPUS)
    )
    metrics = dict.fromkeys(CORPUS, 0.25)
    reducer.commit(
        session,
        lambda view: round_document(replace(view, clients=())),
        metrics=metrics,
        train_metrics=metrics,
        phases=dict.fromkeys(CORPUS, 1.0),
        clients=contributions,
    )
    reducer.lines.extend(
        LogView(
            id=number + 1,
            session=session,
            round=1,
            work="train",
            client=text,
            at=NOW,
            stream=text,
            text=f"line {text}",
        )
        for number, text in enumerate(CORPUS)
    )
    for text in CORPUS:
        reducer.happen("client.failed", session, {"client": text, "round": 1, "message": text, "work": text})
        reducer.happen(text, None, {"name": text, **LOOKALIKE})
    reducer.happen("node.attached", None, {"name": LOOKALIKE})
    return session


HURT = """() => ({
    hurt: window.hurt ?? null,
    polluted: ({}).hurt ?? Object.prototype.tag ?? null,
    foreign: [...document.querySelectorAll("#app *")]
        .filter((each) => each.matches("script, img, iframe, style, b, object, embed, base, link"))
        .map((each) => each.outerHTML),
    handlers: [...document.querySelectorAll("#app *")]
        .flatMap((each) => [...each.attributes].map((attribute) => attribute.name))
        .filter((name) => name.startsWith("on") || name === "style" || name === "srcdoc"),
    links: [...document.querySelectorAll("#app a")].map((each) => each.getAttribute("href"))
        .filter((href) => !(href.startsWith("#/") || href === "docs")),
})"""
UNHURT: dict[str, Any] = {"hurt": None, "polluted": None, "foreign": [], "handlers": [], "links": []}


async def test_it_stays_text_in_every_view(served: Served) -> None:
    session = await hostile(served)
    views = ["", "sessions", f"sessions/{session}?round=1", "models", "packages", "nodes", "tokens"]
    async with browser() as started:
        for view in views:
            async with visit(started, f"{served.url}/#/{view}") as look:
                served.reducer.progress(
                    session,
                    {
                        "round": 2,
                        "work": "train",
                        "asked": 3,
                        "counted": 1,
                        "stages": dict(zip(CORPUS, CORPUS, strict=True)),
                    },
                )
                if view.startswith("sessions/"):
                    await expect(look.page.get_by_role("heading", level=1)).to_contain_text(CORPUS[1])
                    await expect(look.page.get_by_role("table", name="Clients of the round")).to_be_visible()
                    await look.page.get_by_label("Round", exact=True).select_option("all")
                    lines = look.page.get_by_role("table", name="Log lines").locator("td.text")
                    await expect(lines).to_have_count(len(CORPUS))
                    assert await lines.all_text_contents() == [f"line {text}" for text in CORPUS]
                    names = look.page.get_by_role("table", name="Clients of the round").locator("tbody th")
                    assert await names.all_text_contents() == CORPUS
                    for summary in await look.page.locator("summary").all():
                        await summary.click()
                elif view == "nodes":
                    names = look.page.get_by_role("table", name="Nodes").locator("tbody th")
                    await expect(names).to_have_count(len(CORPUS))
                    assert await names.all_text_contents() == CORPUS
                elif view == "":
                    for text in CORPUS[1::2]:
                        await expect(look.page.locator(".picture title").get_by_text(text).first).to_be_attached()
                assert await look(HURT) == UNHURT, view


async def test_entities_are_not_read_as_such(served: Served) -> None:
    session = await hostile(served)
    async with browser() as started, visit(started, f"{served.url}/#/sessions/{session}") as look:
        await expect(look.page.get_by_role("heading", level=1)).to_contain_text(CORPUS[1])
        written = await look.page.locator("h1").inner_html()
        assert html.escape(CORPUS[1], quote=False) in written


async def test_data_that_looks_like_an_element_is_data(served: Served) -> None:
    async with browser() as started, visit(started, served.url) as look:
        made = await look(
            """async (data) => {
                const { h, render } = await import("./web/dom.js");
                const host = document.createElement("div");
                render(host, h("p", null, data, [data, null, false, 0]));
                return [host.children.length, host.firstChild.children.length, host.textContent];
            }""",
            LOOKALIKE,
        )
        assert made == [1, 0, "[object Object][object Object]0"]


async def test_what_could_run_is_never_set(served: Served) -> None:
    refused = [
        {"href": "javascript:alert(1)"},
        {"href": "//elsewhere.example"},
        {"href": "https://elsewhere.example"},
        {"src": "x"},
        {"innerHTML": "<b>"},
        {"style": "x"},
        {"onclick": "alert(1)"},
    ]
    async with browser() as started, visit(started, served.url) as look:
        told = await look(
            """async (refused) => {
                const { h, render } = await import("./web/dom.js");
                return refused.map((props) => {
                    try {
                        render(document.createElement("div"), h("a", props));
                        return null;
                    } catch (error) {
                        return error.message.split(" ")[0];
                    }
                });
            }""",
            refused,
        )
        assert told == [name for props in refused for name in props]


async def test_the_browser_refuses_what_the_page_would_never_do(served: Served) -> None:
    async with browser() as started, visit(started, served.url) as look:
        refused = await look(
            """async () => {
                const refused = [];
                document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
                const attempt = (work) => { try { work(); } catch { /* told by the event */ } };
                attempt(() => { document.createElement("div").innerHTML = "<b>"; });
                attempt(() => eval("1"));
                const put = (tag, values) => document.body.append(Object.assign(document.createElement(tag), values));
                attempt(() => put("style", { textContent: "a{}" }));
                attempt(() => put("img", { src: "http://127.0.0.1:9/x" }));
                await fetch("http://127.0.0.1:9/x").catch(() => null);
                const frame = () => new Promise(requestAnimationFrame);
                for (let step = 0; step < 100 && refused.length < 5; step += 1) await frame();
                document.body.lastChild.remove();
                return refused.map((each) => each.replace(/-elem$/, "")).sort();
            }"""
        )
        assert {"connect-src", "img-src", "require-trusted-types-for", "style-src"} <= set(refused)
        look.complaints.clear()
