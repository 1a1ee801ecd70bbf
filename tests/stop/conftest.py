"""The topic, group and services of each test of a stop."""

from contextlib import AsyncExitStack

import pytest

from testkit.brokers import ApacheKafka
from testkit.brokers.apache import java_and_maven_answer
from tests.stop.scene import Scene


@pytest.fixture
async def scene(kafka, new_topic, tmp_path):
    """A topic, a group with a bystander as a member, and services to start."""
    async with AsyncExitStack() as stack:
        yield await Scene.set_up(stack, kafka, new_topic, tmp_path)


@pytest.fixture
async def lonely_scene(kafka, new_topic, tmp_path):
    """The same without the bystander."""
    async with AsyncExitStack() as stack:
        yield await Scene.set_up(stack, kafka, new_topic, tmp_path, bystanders=0)


@pytest.fixture(scope="module")
def own_broker():
    """A broker that only this module uses, to kill and to pause it."""
    if not java_and_maven_answer():
        pytest.skip("a broker of its own to kill needs java >= 17 and mvn")
    with ApacheKafka() as server:
        yield server
