"""Brokers for faults, shared by tests that leave them whole; every test has to end in `calm`."""

from pathlib import Path

import pytest

from faststream_concurrent_kafka import KafkaConcurrentHandler
from testkit.brokers import ApacheKafka
from testkit.brokers.apache import java_and_maven_answer
from tests.faults.calm import calm
from tests.faults.network import Site


# Topics are not created automatically, so a deleted one stays away; ACLs say what is allowed.
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
    """Run every test within `calm`, and check that it has stopped the handler."""
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
    """One broker without automatic topic creation, which enforces ACLs."""
    with ApacheKafka(settings=_STRICT) as server:
        yield server


@pytest.fixture(scope="package")
def three(_java):
    """Three brokers, all alive when a test begins and when it ends."""
    with ApacheKafka(3) as server:
        yield server


@pytest.fixture(scope="module")
def site(_java):
    """A broker that is reached directly, or through a proxy that can be cut."""
    with Site() as it:
        yield it
