from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import Coroutine
from typing import Any

import pytest

from runnel.common.errors import BadSettings, NotFound, Unreachable
from runnel.common.lifetime import BAD_SETTINGS, FAILED, INTERRUPTED, OK, main_process, run_until_signal

pytestmark = pytest.mark.unit


def failing(error: BaseException) -> tuple[int, str]:
    async def main() -> None:
        raise error

    stream = io.StringIO()
    return main_process(main, stream=stream), stream.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_asks_to_drain(number: signal.Signals) -> None:
    ended: list[str] = []

    async def main(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await stop.wait()
        ended.append("drained")

    await run_until_signal(main)
    assert ended == ["drained"]


async def test_the_second_signal_cancels_and_cleaning_up_still_runs() -> None:
    ended: list[str] = []

    async def main(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(run_until_signal(main))
    assert ended == ["cleaned up"]


async def test_from_the_third_on_the_system_decides() -> None:
    seen: list[object] = []

    async def main(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            seen.extend([signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)])

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(run_until_signal(main))
    assert seen == [signal.SIG_DFL, signal.SIG_DFL]


@pytest.mark.parametrize("error", [None, NotFound("gone"), KeyError("x")])
async def test_handlers_are_put_back(error: Exception | None) -> None:
    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:

        async def main(stop: asyncio.Event) -> None:
            assert signal.getsignal(signal.SIGTERM) is not mine
            if error:
                raise error

        if error:
            with pytest.raises(type(error)):
                await run_until_signal(main)
        else:
            await run_until_signal(main)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_main_that_ends_has_status_0() -> None:
    async def main() -> None:
        await asyncio.sleep(0)

    assert main_process(main) == OK


def test_a_drained_process_has_status_0_and_one_cut_off_130() -> None:
    def process(signals: int) -> Coroutine[Any, Any, None]:
        async def serve(stop: asyncio.Event) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            await stop.wait()
            if signals == 2:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.Event().wait()

        return run_until_signal(serve)

    assert main_process(lambda: process(1)) == OK
    assert main_process(lambda: process(2)) == INTERRUPTED


def test_ctrl_c_outside_of_a_drain() -> None:
    async def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    stream = io.StringIO()
    # What a shell starts in the background ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main_process(main, stream=stream) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (NotFound("No session x.", hint="See runnel session list."), FAILED, "No session x. See runnel session list."),
        (BadSettings("name = 3."), BAD_SETTINGS, "name = 3."),
        (Unreachable("first\nsecond  https://a:hush@b"), FAILED, "first second https://***@b"),
        (PermissionError(13, "Permission denied", "state"), FAILED, "[Errno 13] Permission denied: 'state'"),
        (ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [NotFound("it")])]), FAILED, "it"),
        (ExceptionGroup("g", [ExceptionGroup("h", [BadSettings("key")]), NotFound("it")]), BAD_SETTINGS, "key"),
        (BaseExceptionGroup("g", [KeyboardInterrupt(), NotFound("it")]), FAILED, "it"),
    ],
)
def test_an_error_for_people_is_one_line(error: BaseException, status: int, line: str) -> None:
    assert failing(error) == (status, f"runnel: {line}\n")


@pytest.mark.parametrize("error", [ValueError("odd"), ExceptionGroup("g", [ValueError("odd"), OSError(5, "io")])])
def test_a_defect_leaves_its_traceback(error: Exception) -> None:
    status, text = failing(error)
    assert status == FAILED
    assert "Traceback" in text
    assert "ValueError: odd" in text
    assert text.splitlines()[-1].startswith(f"runnel: unexpected {type(error).__name__}")


def test_an_interrupt_in_a_group() -> None:
    assert failing(BaseExceptionGroup("g", [KeyboardInterrupt()])) == (INTERRUPTED, "")
