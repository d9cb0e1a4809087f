"""A real browser that looks at the page, and what it saw."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Browser, Page, Request, async_playwright, expect

from tests.needs import needs

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 45_000  # the machine may be busy; a test that fails waits so long once

# The browser itself says so for each answer above 399 and each connection that is refused; no script complained.
_EXPECTED = ("Failed to load resource", "net::ERR_")


@dataclass(slots=True)
class Visit:
    """A page that is looked at: what it complained about and what it asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    async def goto(self, url: str) -> None:
        """Open ``url`` and wait until the page follows what happens."""
        await self.page.goto(url)
        await self.live()

    async def live(self) -> None:
        """Wait until the page follows what happens."""
        await expect(self.page.get_by_role("status").filter(has_text="live")).to_be_visible()

    async def __call__(self, script: str, argument: Any = None) -> Any:
        """Return what a script in the page returns."""
        return await self.page.evaluate(script, argument)


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Start the machine's Chromium; skips (in CI: fails) where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    needs(program, "Chromium (Debian: apt-get install chromium)")
    # Proxies are for the world outside; what is tested listens on the loopback.
    environ: dict[str, str | float | bool] = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(
            executable_path=program, args=list(ARGUMENTS), env=environ, timeout=PATIENCE_MS
        )
        try:
            yield started
        finally:
            await started.close()


@asynccontextmanager
async def visit(
    started: Browser, url: str | None = None, *, width: int = 1280, height: int = 900, **context: Any
) -> AsyncIterator[Visit]:
    """Open a window of its own; nothing may have gone wrong in it by the end."""
    window = await started.new_context(viewport={"width": width, "height": height}, **context)
    window.set_default_timeout(PATIENCE_MS)
    try:
        seen = Visit(await window.new_page())
        page = seen.page

        async def dismiss(dialog: Any) -> None:
            seen.dialogs.append(dialog.message)
            await dialog.dismiss()

        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                seen.complaints.append(message.text)
                if message.type in {"error", "warning"} and not any(part in message.text for part in _EXPECTED)
                else None
            ),
        )
        page.on("dialog", dismiss)
        page.on("request", lambda request: seen.requests.append(request))
        if url is not None:
            await seen.goto(url)
        yield seen
        assert (seen.complaints, seen.dialogs) == ([], [])
    finally:
        await window.close()
