"""Every integration test starts without a handler, and leaves no task."""

import asyncio
from pathlib import Path

import pytest
import uvloop
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import KafkaConcurrentHandler, KafkaConcurrentProcessingMiddleware
from testkit.brokers import wait_until
from tests.integration.helpers import Cluster


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("integration")


def pytest_asyncio_loop_factories(item):
    factories = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    marker = item.get_closest_marker("asyncio")
    names = (marker.kwargs.get("loop_factories") if marker else None) or ["asyncio"]
    return {name: factories[name] for name in names}


@pytest.fixture(autouse=True)
async def nothing_left():
    """Fail a test that leaves tasks behind; the next one has a new handler."""
    KafkaConcurrentHandler._instance = None
    before = asyncio.all_tasks()

    def left():
        return {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}

    yield
    instance, KafkaConcurrentHandler._instance = KafkaConcurrentHandler._instance, None
    try:
        await wait_until(lambda: not left(), 2, lambda: f"tasks left behind: {left()}")
    finally:
        for task in left():
            task.cancel()
    assert instance is None, "the handler was not stopped"


@pytest.fixture
def cluster(kafka):
    """The broker of the tests, with values in place of bytes."""
    return Cluster(kafka.bootstrap_servers)


@pytest.fixture
def new_broker(kafka):
    """`new_broker(*middlewares)` makes a KafkaBroker; without arguments it has only the library's middleware."""

    def make(*middlewares, logger=None, **more):
        chosen = middlewares or (KafkaConcurrentProcessingMiddleware,)
        return KafkaBroker(kafka.bootstrap_servers, middlewares=chosen, logger=logger, **more)

    return make
