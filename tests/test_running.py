"""Tests marked `alone` run alone, and slow ones are reported unless they say why."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from tests.running import scope_of, slow_without_reason, turn


async def test_a_test_that_is_alone_waits_for_the_others_and_lets_none_begin(tmp_path):
    """Two are under way; the third waits to be alone; a fourth that comes then waits for the third."""
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
        ("tests/unit/test_slots.py::TestIt::test_it[a::b]", "tests/unit/test_slots.py::TestIt::test_it[a::b]"),
    ],
)
def test_tests_that_share_costly_fixtures_go_to_one_worker_and_others_one_by_one(nodeid, scope):
    """With pytest-xdist a broker for a module is started once."""
    assert scope_of(nodeid) == scope


def test_a_test_that_took_long_is_reported_unless_it_says_why():
    """Setup, call and teardown together."""
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
