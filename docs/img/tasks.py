"""Draw tasks.png: the page of a task in the midst of its run, over a real reducer. Usage: python -m docs.img.tasks"""

from __future__ import annotations

import asyncio
import io
import tempfile
import zipfile
from contextlib import AsyncExitStack
from pathlib import Path

from playwright.async_api import expect

from runnel.common.errors import PolicyRefused
from runnel.common.protocol import TaskOrder
from tests.browser.browsing import browser, visit
from tests.doubles.task_client import TaskClient
from tests.network.local_network import LocalNetwork

TARGET = Path(__file__).with_suffix(".png")
IMAGE = "registry.example.org/diabetes/age-histogram:1.4"
SITES = ("amsterdam", "bergen", "cluj", "dublin", "essen", "firenze")


def histogram(order: TaskOrder) -> dict[str, bytes]:
    """Return the results of a site that counted."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("ages.csv", "decade,patients\n40,31\n50,64\n60,87\n70,52\n")
    return {"output": out.getvalue(), "stdout": b"234 patients in 4 decades\n", "stderr": b""}


def refused(order: TaskOrder) -> dict[str, bytes]:
    """End as at a site that does not let the image in."""
    raise PolicyRefused(f"The policy of {order.client} refuses the run by its rule images: {IMAGE} is not among them.")


async def main() -> None:
    """Run the task and take the picture."""
    with tempfile.TemporaryDirectory() as folder:
        async with LocalNetwork(Path(folder)) as net, AsyncExitStack() as stack:
            for site in SITES:
                client = TaskClient(
                    net.reducer.rpc_address,
                    site,
                    review=site == "bergen",
                    kinds={"output": "application/zip"},
                    produce=refused if site == "firenze" else histogram,
                )
                if site in {"cluj", "dublin"}:
                    client.gate.clear()
                await stack.enter_async_context(client)
            await net.until_attached(*SITES)
            spec = {"name": "age by diagnosis", "executors": [{"image": IMAGE}]}
            spec |= {"selections": [{"query": "{ patients { age diagnosis } }"}]}
            answer = await net.http.post("/tasks", json={"spec": spec, "sites": SITES})
            answer.raise_for_status()
            task = answer.json()
            run = next(each["run"] for each in task["runs"] if each["site"] == "amsterdam")
            address = f"{net.reducer.url}/#/tasks/{task['task']}?run={run}"
            async with browser() as started, visit(started, address, width=1080, height=1290) as look:
                for words in ("2 running", "2 done", "1 failed", "1 awaiting-release"):
                    await expect(look.page.locator(".whole svg")).to_contain_text(words)
                await expect(look.page.get_by_role("table", name="Results")).to_be_visible()
                await expect(look.page.get_by_role("table", name="Log lines")).to_be_visible()
                await look.page.screenshot(path=TARGET)


if __name__ == "__main__":
    asyncio.run(main())
