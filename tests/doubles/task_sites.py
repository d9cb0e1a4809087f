"""Sites that take tasks and run nothing, as a process: ``python -m tests.doubles.task_sites NETWORK NAME…``."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
import zipfile
from contextlib import AsyncExitStack

from runnel.common.protocol import TaskOrder
from tests.doubles.task_client import TaskClient
from tests.eventually import eventually


def gives_out(order: TaskOrder) -> dict[str, bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("result.csv", f"site,rows\n{order.client},3\n")
    return {"stdout": f"3 rows at {order.client}\n".encode(), "stderr": b"", "output": out.getvalue()}


CATALOGUE = """{"datasets": [{"id": "default", "title": "Heart study", "creator": "Ada", "tables": [
  {"name": "patients", "fields": [{"name": "age", "type": "integer", "label": "Age", "constraints": {"minimum": 0}},
                                  {"name": "sex", "type": "text", "label": "Sex", "lookup": "SEX"}]}],
  "lookups": {"SEX": {"f": "female", "m": "male"}}}]}"""


async def main(network: str, *names: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(TaskClient(network, name, produce=gives_out, catalogue=CATALOGUE))
            for name in names
        ]
        await eventually(lambda: all(client.link.attached for client in clients), timeout_s=30)
        print("event=ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
