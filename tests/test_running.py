"""Tests marked `alone` run alone, and slow ones are reported unless they say why."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from typing_extensions import override

from testkit.brokers import BrokerError, External
from tests.running import SharedKafka, in_order, scope_of, shared_kafka, slow_without_reason, start_shared_kafka, turn


async def test_a_test_that_is_alone_waits_for_the_others_and_lets_none_begin(tmp_path):
    """Two tests run; the third waits to be alone; a fourth that comes after it waits for the third."""
    order, others_may_end = [], threading.Event()
    began = {name: threading.Event() for name in ("one", "beside it", "alone", "later")}

    def run(name, *, is_alone=False, may_end=None):
        with turn(tmp_path, is_alone=is_alone):
            order.append(name)
            began[name].set()
            assert may_end is None or may_end.wait(10)

    async with asyncio.TaskGroup() as group:
        for name in ("one", "beside it"):
            group.create_task(asyncio.to_thread(run, name, may_end=others_may_end))
            assert await asyncio.to_thread(began[name].wait, 10)
        group.create_task(asyncio.to_thread(run, "alone", is_alone=True))
        assert not await asyncio.to_thread(began["alone"].wait, 0.3)
        group.create_task(asyncio.to_thread(run, "later"))
        assert not await asyncio.to_thread(began["later"].wait, 0.3)
        others_may_end.set()
    assert order == ["one", "beside it", "alone", "later"]


@pytest.mark.parametrize(
    ("nodeid", "scope"),
    [
        ("tests/faults/test_outage.py::test_it[a-b]", "tests/faults/test_outage.py"),
        ("tests/readme/test_readme.py::test_it[a-b]", "tests/readme/test_readme.py"),
        ("tests/unit/test_slots.py::TestIt::test_it[a::b]", "tests/unit/test_slots.py::TestIt::test_it[a::b]"),
    ],
)
def test_tests_that_share_costly_fixtures_go_to_one_worker_and_others_one_by_one(nodeid, scope):
    """With pytest-xdist a broker for a module is started once."""
    assert scope_of(nodeid) == scope


class Marked:
    """A test with marks."""

    def __init__(self, nodeid, *marks):
        self.nodeid = nodeid
        self._marks = marks

    def get_closest_marker(self, name):
        return name in self._marks or None


def test_what_takes_long_begins_first_and_what_runs_alone_last():
    """The tests of a file that goes to one worker keep their order."""

    one, whole, alone = (
        "tests/unit/test_it.py::test",
        "tests/readme/test_it.py::test",
        "tests/examples/test_it.py::test",
    )
    items = [
        *(Marked(f"{alone}_1", "alone"), Marked(f"{alone}_2")),
        *(Marked(f"{one}_1"), Marked(f"{one}_2", "slow"), Marked(f"{whole}_1"), Marked(f"{whole}_2")),
    ]
    assert [each.nodeid for each in in_order(items)] == [
        *(f"{one}_2", f"{whole}_1", f"{whole}_2", f"{one}_1"),
        *(f"{alone}_1", f"{alone}_2"),
    ]


def test_the_simulation_fills_the_first_seconds_and_is_spread_over_the_tests_that_wait_for_a_broker():
    """One of two cores computes while the other tests wait."""
    simulated = [Marked(f"tests/simulation/test_it.py::test_{number}") for number in range(12)]
    waiting = [Marked(f"tests/stop/test_it.py::test_{number}", "integration") for number in range(24)]
    slow, other = Marked("tests/stop/test_it.py::test", "slow"), Marked("tests/unit/test_it.py::test")
    order = in_order([other, *simulated, *waiting, slow])
    assert order[:9] == [*simulated[:8], slow]
    assert [order.index(each) for each in simulated[8:]] == [25, 28, 31, 34]
    assert [each for each in order[9:] if each not in simulated] == [*waiting, other]


def test_a_test_that_took_long_is_reported_unless_it_says_why():
    """The seconds of setup, call and teardown are added."""
    reports = [
        SimpleNamespace(nodeid=name, duration=seconds, keywords=dict.fromkeys([name, *marks], 1))
        for name, seconds, *marks in [
            *(("short", 1), ("short", 29), ("short", 0)),
            *(("with a reason", 31, "slow"), ("with a reason", 1, "slow")),
            *(("long", 16), ("long", 15)),
            ("longest", 40),
        ]
    ]
    assert list(slow_without_reason(reports).items()) == [("longest", 40), ("long", 31)]


class Counting(External):
    """Counts its starts and stops."""

    def __init__(self, error=None):
        super().__init__(["there:9092"], full=False)
        self._error = error
        self.starts = self.stops = 0

    @override
    def start(self):
        self.starts += 1
        if self._error is not None:
            raise BrokerError(self._error)

    @override
    def stop(self):
        self.stops += 1


def test_the_workers_of_a_run_share_a_broker_which_starts_when_the_first_asks_for_it():
    """A run without tests that need a broker starts none."""
    server = Counting()
    shared = SharedKafka(server)
    assert server.starts == 0
    start_shared_kafka(shared.address)
    for _ in range(2):
        found = shared_kafka(shared.address)
        assert (found.bootstrap_servers, found.full) == (["there:9092"], False)
    assert (server.starts, server.stops) == (1, 0)
    shared.stop()
    assert (server.starts, server.stops) == (1, 1)


def test_every_worker_hears_why_the_shared_broker_did_not_start():
    """It is started once."""
    server = Counting(error="no java")
    shared = SharedKafka(server)
    for _ in range(2):
        with pytest.raises(BrokerError, match="no java"):
            shared_kafka(shared.address)
    shared.stop()
    assert (server.starts, server.stops) == (1, 1)
