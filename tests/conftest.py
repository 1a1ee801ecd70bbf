"""The brokers as fixtures, and the rule that CI never skips a test that needs one."""

import os
import re
from contextlib import ExitStack, nullcontext
from uuid import uuid4

import pytest
from hypothesis import settings

from testkit.brokers import ApacheKafka, choose_broker, create_topic
from testkit.brokers.apache import java_and_maven_answer
from tests.running import (
    SLOW_SEC,
    Scheduling,
    SharedKafka,
    in_order,
    shared_kafka,
    slow_without_reason,
    start_shared_kafka,
    turn,
)


# CI runs the same examples every time, `just test` (--hypothesis-profile=thorough) as many random ones, and a bare
# pytest a fifth of them. No deadline: the duration of an example says more about the machine than about the code.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=settings().max_examples // 5)
settings.load_profile("ci" if os.environ.get("CI", "") != "" else "quick")

_CHOSEN = pytest.StashKey()
_LINE = pytest.StashKey()
_SHARED = pytest.StashKey()
_NEEDS_BROKER = {"kafka", "new_topic", "own_kafka"}


def pytest_configure(config):
    try:
        config.stash[_CHOSEN] = choose_broker(lambda line: config.stash.__setitem__(_LINE, line))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_report_header(config):
    return config.stash[_LINE]


def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    if _SHARED not in node.config.stash:
        node.config.stash[_SHARED] = SharedKafka(node.config.stash[_CHOSEN])
    node.workerinput["kafka"] = node.config.stash[_SHARED].address


def pytest_unconfigure(config):
    if _SHARED in config.stash:
        config.stash[_SHARED].stop()


def pytest_collection_modifyitems(config, items):
    for item in items:
        if not _NEEDS_BROKER.isdisjoint(item.fixturenames):
            item.add_marker("integration")
    if _is_worker(config):
        items[:] = in_order(items)


def pytest_collection_finish(session):
    if _is_worker(session.config) and any("kafka" in item.fixturenames for item in session.items):
        start_shared_kafka(session.config.workerinput["kafka"])


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the time limit of a test begins with its turn
def pytest_runtest_protocol(item):
    is_alone = item.get_closest_marker("alone") is not None
    with turn(item.config.rootpath / ".pytest_cache", is_alone=is_alone) if _is_worker(item.config) else nullcontext():
        return (yield)


def pytest_terminal_summary(terminalreporter):
    reports = [each for some in terminalreporter.stats.values() for each in some if hasattr(each, "duration")]
    for nodeid, seconds in slow_without_reason(reports).items():
        terminalreporter.write_line(f"{seconds:.0f} s, over {SLOW_SEC} s without a mark slow(reason): {nodeid}")


def pytest_runtest_setup(item):
    chosen = item.config.stash[_CHOSEN]
    if item.get_closest_marker("apache") and not chosen.full:
        pytest.skip(f"needs more of Kafka than {chosen.name} gives")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _in_ci() and _is_integration(item):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: CI may not skip an integration test. {reason}"
    return report


@pytest.fixture(scope="session")
def kafka(request):
    """The Kafka of this run: a started `KafkaServer`, shared by all tests, and by all workers of pytest-xdist."""
    config = request.config
    with shared_kafka(config.workerinput["kafka"]) if _is_worker(config) else config.stash[_CHOSEN] as server:
        yield server


@pytest.fixture
def own_kafka():
    """`own_kafka(brokers=1, *, settings=None, heap_mb=512)` starts an `ApacheKafka` for this test alone to kill."""
    if not java_and_maven_answer():
        pytest.skip("brokers of its own to kill need java >= 17 and mvn")
    with ExitStack() as stack:
        yield lambda brokers=1, **keywords: stack.enter_context(ApacheKafka(brokers, **keywords))


@pytest.fixture
def new_topic(request):
    """`await new_topic(partitions=1, *, bootstrap=None, replication_factor=None, config=None)` returns a topic's name.

    It is new, on `kafka` or at the `bootstrap` servers, which a test with brokers of its own has to give.
    """
    shared = [] if "own_kafka" in request.fixturenames else request.getfixturevalue("kafka").bootstrap_servers
    label = re.sub(r"[^\w.-]+", "-", request.node.name)[:150]

    async def create(partitions=1, *, bootstrap=None, **keywords):
        where = bootstrap or shared
        if not where:
            raise TypeError("with brokers of its own, a test says where: new_topic(bootstrap=...)")
        name = f"{label}-{uuid4().hex[:8]}"
        await create_topic(where, name, partitions, **keywords)
        return name

    return create


def _is_worker(config):
    return hasattr(config, "workerinput")


def _in_ci():
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def _is_integration(item):
    return any(item.get_closest_marker(name) for name in ("integration", "apache", "cluster"))
