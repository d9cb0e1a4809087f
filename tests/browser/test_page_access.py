"""Who may look at the page and do what on it, over a reducer that asks for tokens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, expect

from tests.browser.browsing import Visit, browser, visit
from tests.doubles.reducer_service import OPERATOR_TOKEN, VIEWER_TOKEN
from tests.doubles.serving import serving
from tests.network.local_network import LocalNetwork

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def token_field(page: Page) -> Locator:
    """Return where one signs in; a card of tokens, which may be there first, has another name."""
    return page.get_by_label("Token", exact=True)


async def sign_in(look: Visit, token: str) -> None:
    await token_field(look.page).fill(token)
    await look.page.get_by_role("button", name="Sign in").click()


async def test_a_token_is_asked_once_and_goes_nowhere_but_into_the_header(tmp_path: Path) -> None:
    async with serving(tmp_path, insecure=False) as served, browser() as started, visit(started) as look:
        page = look.page
        await page.goto(f"{served.url}/#/nodes")
        await expect(page.get_by_role("alert")).to_have_text("This network asks for a token.")
        await sign_in(look, "rnl-wrong")
        await expect(page.get_by_role("alert")).to_have_text("A token is asked for here.")
        await sign_in(look, OPERATOR_TOKEN)
        await look.live()
        # Where one wanted to go is where one comes.
        await expect(page.get_by_role("heading", name="Nodes")).to_be_visible()
        await expect(page.get_by_text("operator", exact=True)).to_be_visible()
        await expect(page.get_by_text("insecure")).to_have_count(0)
        await page.reload()
        await look.live()
        await expect(token_field(page)).to_have_count(0)

        assert await look("() => Object.values(sessionStorage)") == [OPERATOR_TOKEN]
        assert await look("() => [Object.keys(localStorage), document.cookie]") == [[], ""]
        assert [each.url for each in look.requests if "rnl-" in each.url] == []
        asked = [each for each in look.requests if "/api/" in each.url]
        assert {each.headers.get("authorization") for each in asked} == {
            None,
            "Bearer rnl-wrong",
            f"Bearer {OPERATOR_TOKEN}",
        }
        # Files of the page are the same for all; nobody needs to know who asks for them.
        files = [each for each in look.requests if "/web/" in each.url]
        assert files
        assert [each.url for each in files if "authorization" in each.headers] == []

        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("alert")).to_have_text("You are signed out.")
        assert await look("() => sessionStorage.length") == 0
        await expect(page.get_by_role("heading", name="Nodes")).to_have_count(0)


async def test_who_may_only_look_has_nothing_to_press(tmp_path: Path) -> None:
    async with serving(tmp_path, insecure=False) as served, browser() as started:
        package = (await served.http.post("/packages", content=b"a", params={"filename": "p.tar.gz"})).json()["digest"]
        seed = (await served.http.post("/models", content=b"m")).json()["model"]
        wanted = {"package": package, "seed": seed, "rounds": 3}
        session = (await served.http.post("/sessions", json=wanted)).json()["session"]
        here = f"{served.url}/#/sessions/{session}"
        for token, buttons in ((VIEWER_TOKEN, 0), (OPERATOR_TOKEN, 1)):
            async with visit(started) as look:
                await look.page.goto(here)
                await sign_in(look, token)
                await look.live()
                await expect(look.page.get_by_text("0 of 3 rounds")).to_be_visible()
                for name in ("Stop", "Extend"):
                    await expect(look.page.get_by_role("button", name=name, exact=True)).to_have_count(buttons)
                await expect(look.page.get_by_role("link", name="Tokens")).to_have_count(buttons)
        async with visit(started) as look:
            await look.page.goto(f"{served.url}/#/tokens")
            await sign_in(look, VIEWER_TOKEN)
            await expect(look.page.get_by_text("A token of role viewer may not do this.")).to_be_visible()


async def test_an_operator_makes_and_revokes_tokens(tmp_path: Path) -> None:
    async with LocalNetwork(tmp_path, insecure=False) as net, browser() as started:
        token = (tmp_path / "reducer" / "operator.token").read_text().strip()
        async with visit(started) as look:
            page = look.page
            await page.goto(f"{net.reducer.url}/#/tokens")
            await sign_in(look, token)
            await page.get_by_label("Role").select_option("client")
            await page.get_by_label("Name").fill("hospital 3")
            await page.get_by_label("Days until it expires").fill("30")
            await page.get_by_role("button", name="Create a token").click()
            shown = page.get_by_role("status").filter(has_text="shown this once")
            secret = await shown.locator("code").inner_text()
            assert re.fullmatch(r"rnl_[0-9a-z]{40,}", secret)
            listed = await net.http.get("/tokens", headers={"Authorization": f"Bearer {token}"})
            made = next(each for each in listed.json()["items"] if each["name"] == "hospital 3")
            assert (made["role"], made["expires_at"] is None) == ("client", False)
            row = page.get_by_role("table", name="Tokens").get_by_role("row").filter(has_text="hospital 3")
            await expect(row).to_contain_text("valid")

            # A token for joining is none for looking: that is told, and another is asked for.
            async with visit(started) as other:
                await other.page.goto(net.reducer.url)
                await sign_in(other, secret)
                await expect(other.page.get_by_role("alert")).to_contain_text("A token of the role client")
                await expect(token_field(other.page)).to_be_visible()

            await page.get_by_role("link", name="Nodes").click()
            await page.get_by_role("link", name="Tokens").click()
            await expect(row).to_be_visible()
            assert secret not in await page.content()
            await page.get_by_role("button", name="Revoke hospital 3").click()
            await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
            await expect(row).to_contain_text("revoked")
            await expect(page.get_by_role("button", name="Revoke hospital 3")).to_have_count(0)


async def test_whose_token_is_revoked_is_asked_for_another(tmp_path: Path) -> None:
    async with LocalNetwork(tmp_path, insecure=False) as net, browser() as started:
        operator = {"Authorization": "Bearer " + (tmp_path / "reducer" / "operator.token").read_text().strip()}
        made = (await net.http.post("/tokens", json={"role": "viewer"}, headers=operator)).json()
        async with visit(started) as look:
            await look.page.goto(net.reducer.url)
            await sign_in(look, made["token"])
            await look.live()
            (await net.http.delete(f"/tokens/{made['id']}", headers=operator)).raise_for_status()
            await look.page.get_by_role("link", name="Models").click()
            await expect(look.page.get_by_role("alert")).to_have_text("The token is revoked.")
            assert await look("() => sessionStorage.length") == 0


async def test_an_insecure_network_says_so_and_asks_for_nothing(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, insecure=True, token="") as served,
        browser() as started,
        visit(started, served.url) as look,
    ):
        await expect(look.page.get_by_role("note")).to_contain_text("Insecure network.")
        await expect(token_field(look.page)).to_have_count(0)
        asked = [each for each in look.requests if "/api/" in each.url]
        assert asked
        assert [each.url for each in asked if "authorization" in each.headers] == []
