"""Rules for every test: nothing may be left behind, neither tasks nor files, sockets, threads or processes."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack
from functools import cache

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests import leaks
from tests.eventually import eventually
from tests.leaks import Holdings
from tests.postgresql import Cluster, running_cluster

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


def _is_debugged(item: pytest.Item) -> bool:
    """asyncio's debug mode notes where each future and handle was made: with real servers a third of the time.

    A unit test on PostgreSQL has the mark ``network`` too.
    """
    return item.get_closest_marker("unit") is not None and item.get_closest_marker("network") is None


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
    asyncio.get_running_loop().set_debug(_is_debugged(request.node))
    before = asyncio.all_tasks()
    yield
    me = asyncio.current_task()

    def left() -> set[asyncio.Task[object]]:
        return {task for task in asyncio.all_tasks() - before if task is not me and not task.done()}

    try:
        await eventually(lambda: not left(), timeout_s=leaks.PATIENCE_S)
    except AssertionError:
        pytest.fail("left behind: " + "; ".join(str(task) for task in left()), pytrace=False)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Run a PostgreSQL server for all tests that leave it as it is."""
    with running_cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.network)])
def each_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test on SQLite and on PostgreSQL: what ``database_in`` opens for a folder is of the one or the other."""
    with ExitStack() as lent:
        if request.param == "postgresql":
            of = request.getfixturevalue("cluster")
            urls = cache(lambda _folder: lent.enter_context(of.lent_database()))
            monkeypatch.setattr("tests.doubles.reducer_state.url_in", urls)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    yield
    before = item.stash.get(_BEFORE, None)
    if before and item.get_closest_marker("restarts") is None:
        left = before.left_since(children=_has_children(item))
        if left:
            pytest.fail("left behind: " + "; ".join(left), pytrace=False)
