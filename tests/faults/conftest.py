"""Brokers to be hurt, shared where the hurt heals, and the rule that every fault ends in calm."""

from pathlib import Path

import pytest

from faststream_concurrent_kafka import KafkaConcurrentHandler
from testkit.brokers import ApacheKafka
from testkit.brokers.apache import java_and_maven_answer
from tests.faults.calm import calm
from tests.faults.network import Site


# Nothing that was deleted comes back by itself, and what may be done is for the tests to say.
_STRICT = {
    "auto.create.topics.enable": "false",
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("integration")
            item.add_marker("cluster")


@pytest.fixture(autouse=True)
async def ends_in_calm(caplog):
    """Hold every test to `calm`; the next one has a new handler."""
    KafkaConcurrentHandler._instance = None
    async with calm(caplog):
        yield
        instance, KafkaConcurrentHandler._instance = KafkaConcurrentHandler._instance, None
        assert instance is None, "the handler was not stopped"


@pytest.fixture(scope="package")
def _java():
    if not java_and_maven_answer():
        pytest.skip("brokers of its own to hurt need java >= 17 and mvn")


@pytest.fixture(scope="package")
def strict(_java):
    """One broker that makes no topics by itself and refuses what an ACL denies."""
    with ApacheKafka(settings=_STRICT) as server:
        yield server


@pytest.fixture(scope="package")
def three(_java):
    """Three brokers, all alive when a test begins, and to be left so."""
    with ApacheKafka(3) as server:
        yield server


@pytest.fixture(scope="module")
def site(_java):
    """A broker with two ways to it: one direct, and one through a proxy that can be cut."""
    with Site() as it:
        yield it
