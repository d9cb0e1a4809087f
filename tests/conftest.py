"""Rules for every test: nothing may be left behind, neither tasks nor files, sockets, threads or processes."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Generator, Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests import leaks
from tests.eventually import eventually
from tests.leaks import Holdings

# Laws say what holds, not how soon: a busy machine would fail them. Hypothesis itself does this where CI is set.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])

# By itself structlog draws an exception with the local variables of all frames: of a server's, half a minute.
_PLAIN = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _PLAIN])

_BEFORE = pytest.StashKey[Holdings]()


def _is_async(item: pytest.Function) -> bool:
    hypothesis = getattr(item.obj, "hypothesis", None)
    return inspect.iscoroutinefunction(hypothesis.inner_test if hypothesis else item.obj)


def _has_children(item: pytest.Item) -> bool:
    return item.get_closest_marker("unit") is None


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> None:
    """Look what is held before the test, after fixtures of wider scope; the hook below looks again at its very end."""
    item = request.node
    if _is_async(item):
        request.getfixturevalue("no_task_left_behind")
    item.stash[_BEFORE] = Holdings.now(children=_has_children(item))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sets up the logs of all of it, and may let only warnings through."""
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    handlers, levels = list(logging.root.handlers), [logger.level for logger in loggers]
    before = structlog.get_config() if structlog.is_configured() else None
    yield
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)
    logging.root.handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        if logger.level != level:  # each call empties the caches of all loggers
            logger.setLevel(level)


@pytest.fixture
async def no_task_left_behind(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    # asyncio's debug mode notes where each future and handle was made: with real servers a third of the time.
    asyncio.get_running_loop().set_debug(request.node.get_closest_marker("unit") is not None)
    before = asyncio.all_tasks()
    yield
    me = asyncio.current_task()

    def left() -> set[asyncio.Task[object]]:
        return {task for task in asyncio.all_tasks() - before if task is not me and not task.done()}

    try:
        await eventually(lambda: not left(), timeout_s=leaks.PATIENCE_S)
    except AssertionError:
        pytest.fail("left behind: " + "; ".join(str(task) for task in left()), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    yield
    before = item.stash.get(_BEFORE, None)
    if before and item.get_closest_marker("restarts") is None:
        left = before.left_since(children=_has_children(item))
        if left:
            pytest.fail("left behind: " + "; ".join(left), pytrace=False)
