"""The lag of the event loop, and the line that blocks it; on real loops, since virtual time has no lag."""

import asyncio
import logging
import threading
import time

import pytest
import uvloop

from faststream_concurrent_kafka._runtime.loop_lag import LoopLag
from faststream_concurrent_kafka._runtime.turns import Turns
from faststream_concurrent_kafka.testing import run_virtual
from testkit.brokers import wait_until


SESSION_SEC = 1.5
BLOCKED_SEC = 1.0


def block(sec=BLOCKED_SEC):
    time.sleep(sec)


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == "kafka-loop-watch"]


@pytest.fixture
def turns():
    return Turns()


@pytest.fixture
def lag(turns):
    lag = LoopLag(turns)
    lag.note_session(45.0)
    lag.note_session(SESSION_SEC)
    lag.note_session(10.0)
    yield lag
    lag.stop()


async def until_ended():
    await wait_until(lambda: not watchers(), 5, "the thread has ended")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_blocked_loop_is_named_by_the_line_that_blocks_it(run, lag, turns, caplog):
    """A thread names the line while the loop is blocked; the loop logs its lag as soon as it goes on."""

    async def main():
        lag.start(asyncio.get_running_loop())
        await asyncio.sleep(0.3)  # workload: nothing is late
        assert (lag.is_late, lag.problems(), caplog.messages) == (False, [], [])
        block()
        turns.computed_sec += BLOCKED_SEC
        assert [text for text in caplog.messages if "has been blocked for" in text and "in block." in text]
        await wait_until(lambda: lag.is_late, 5, "it is noted")
        assert BLOCKED_SEC - 0.3 < lag.worst_sec < BLOCKED_SEC + 5
        (problem,) = lag.problems()
        assert "in block" in problem
        assert "evicted after 1.5 s" in problem
        await wait_until(lambda: not lag.is_late, 5, "it is in time again")
        assert lag.problems() == [problem]
        block()
        await wait_until(lambda: lag.is_late, 5, "it is noted again")
        lag.stop()
        await until_ended()

    run(main())
    (warning,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "s late; handlers have used" in warning.message
    assert "must not compute or block" in warning.message
    assert len([each for each in caplog.records if each.levelno == logging.ERROR]) == 2


def test_a_loop_that_is_not_run_is_not_blocked(lag, caplog):
    """Neither is a loop that was closed without a stop: the thread ends."""
    loop = asyncio.new_event_loop()

    async def main():
        lag.start(asyncio.get_running_loop())
        await asyncio.sleep(0.3)  # workload

    loop.run_until_complete(main())
    block()
    loop.run_until_complete(asyncio.sleep(0.1))
    assert not [text for text in caplog.messages if "blocked" in text]
    loop.close()
    asyncio.run(until_ended())


def test_in_virtual_time_nothing_is_measured(lag):
    """There is neither a thread nor a timer."""

    async def main():
        lag.start(asyncio.get_running_loop())
        await asyncio.sleep(1000)
        assert not watchers()
        return lag.worst_sec

    assert run_virtual(main()) == 0


def test_it_keeps_no_process_alive(lag):
    """The thread is a daemon, so the process can end."""

    async def main():
        lag.start(asyncio.get_running_loop())
        assert [thread.daemon for thread in watchers()] == [True]

    asyncio.run(main())
