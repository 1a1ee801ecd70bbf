"""A handler's time limit in virtual time: the handler is cancelled, its place is named, its own errors pass (I27)."""

import asyncio
import contextlib
import functools
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fast_depends.utils import run_in_threadpool

from faststream_concurrent_kafka._record.time_limit import GRACE_SEC, TimeLimits
from faststream_concurrent_kafka.errors import HandlerTimeoutError
from faststream_concurrent_kafka.testing import run_virtual
from testkit.brokers.client import wait_until


RECORD = "orders[0]@7"


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtual(test(*args, **kwargs))

    return run


def now():
    return asyncio.get_running_loop().time()


async def deep():
    await deeper()


async def deeper():
    await asyncio.sleep(100)


async def sleep_on(seconds):
    """Sleep on, and swallow every cancellation."""
    until = now() + seconds
    while now() < until:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(until - now())


@virtual
async def test_a_handler_is_cancelled_at_the_limit_and_the_error_names_record_limit_and_place():
    """The error has the place at which the coroutine was suspended: file, line and function, outermost first."""
    limits = TimeLimits()
    with pytest.raises(HandlerTimeoutError) as raised:
        await limits.run(deep, 2.5, RECORD)
    assert now() == 2.5
    text = str(raised.value)
    assert text.startswith(f"The handler of {RECORD!r} was cancelled after 2.5 s, at ")
    assert "test_time_limits.py" in text
    assert text.index("in deep") < text.index("in deeper") < text.index("in sleep")
    assert not isinstance(raised.value, TimeoutError)
    assert limits.problems(now() + 100) == []


@virtual
async def test_within_the_limit_its_result_or_error_is_its_own():
    """No timer is left that could later cancel its task."""
    limits = TimeLimits()

    async def quick():
        await asyncio.sleep(1)
        return "result"

    async def fails():
        await asyncio.sleep(1)
        raise KeyError("own")

    assert await limits.run(quick, 2, RECORD) == "result"
    with pytest.raises(KeyError, match="own"):
        await limits.run(fails, 2, RECORD)
    await asyncio.sleep(100)
    assert limits.problems(now()) == []


@virtual
async def test_a_timeout_error_of_its_own_passes_through():
    """Raised by the handler's code, or by a timeout that the handler itself has set."""
    limits = TimeLimits()

    async def by_hand():
        raise TimeoutError("own")

    async def by_timeout():
        async with asyncio.timeout(1):
            await deep()

    with pytest.raises(TimeoutError, match="own"):
        await limits.run(by_hand, 2, RECORD)
    with pytest.raises(TimeoutError) as raised:
        await limits.run(by_timeout, 2, RECORD)
    assert type(raised.value) is TimeoutError
    assert now() == 1


@pytest.mark.parametrize("error", [TimeoutError("own"), ValueError("own")], ids=repr)
def test_whatever_it_raises_when_cancelled_it_has_timed_out(error):
    """The exception that it raises becomes the cause."""

    async def changes_its_mind():
        try:
            await deep()
        except asyncio.CancelledError:
            raise error from None

    async def main():
        with pytest.raises(HandlerTimeoutError, match=r"after 2 s, at .*in deeper") as raised:
            await TimeLimits().run(changes_its_mind, 2, RECORD)
        assert raised.value.__cause__ is error

    run_virtual(main())


@virtual
async def test_what_ends_the_process_passes_through_even_then():
    """A SystemExit is raised, and is no failure of the record."""

    async def exits():
        try:
            await deep()
        except asyncio.CancelledError:
            raise SystemExit(3) from None

    with pytest.raises(SystemExit):
        await TimeLimits().run(exits, 2, RECORD)


@virtual
async def test_a_handler_that_swallows_its_cancellation_and_returns_has_timed_out_all_the_same():
    """Its work may be unfinished."""

    async def swallows():
        with contextlib.suppress(asyncio.CancelledError):
            await deep()
        return "result"

    with pytest.raises(HandlerTimeoutError, match="and has gone on to its end"):
        await TimeLimits().run(swallows, 2, RECORD)
    assert now() == 2
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


def test_a_handler_that_goes_on_for_long_is_named_after_a_grace_until_it_ends(caplog):
    """Once in the log; in the problems as long as it goes on, with its present place."""

    async def main():
        limits = TimeLimits()
        running = asyncio.create_task(limits.run(lambda: sleep_on(10), 2, RECORD))
        await asyncio.sleep(2 + GRACE_SEC / 2)
        assert limits.problems(now()) == []
        assert not caplog.messages
        await asyncio.sleep(5)
        (problem,) = limits.problems(now())
        assert RECORD in problem
        assert "was cancelled after 2 s" in problem
        assert "goes on 6 s later, in its slot, at " in problem
        assert "in sleep_on" in problem
        assert not running.done()
        with pytest.raises(HandlerTimeoutError, match="has gone on to its end"):
            await running
        assert now() == 10
        assert limits.problems(now()) == []

    run_virtual(main())
    assert len(caplog.messages) == 1
    assert RECORD in caplog.text
    assert "A handler must not swallow CancelledError" in caplog.text


@virtual
async def test_each_of_several_is_named_and_forgotten_by_itself():
    """Each has its own log line and problem."""
    limits = TimeLimits()
    tasks = [
        asyncio.create_task(limits.run(functools.partial(sleep_on, seconds), 1, f"record {seconds}"))
        for seconds in (3, 6, 9)
    ]
    seen = []
    for _ in range(4):
        await asyncio.sleep(2.5)
        seen.append([seconds for seconds in (3, 6, 9) if f"record {seconds}" in " ".join(limits.problems(now()))])
    assert seen == [[3, 6, 9], [6, 9], [9], []]
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("order", ["cancel before", "cancel after", "cancel in the same step"])
def test_an_outer_cancellation_at_the_limit_stays_one(order):
    """The stop that has cancelled the record must not get a failure of the record."""

    async def main():
        limits = TimeLimits()
        running = asyncio.create_task(limits.run(deep, 2, RECORD))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        if order == "cancel before":
            loop.call_at(2, lambda: loop.call_soon(running.cancel))
        elif order == "cancel after":
            loop.call_at(2, lambda: loop.call_soon(lambda: loop.call_soon(running.cancel)))
        else:
            loop.call_at(2, running.cancel)
        await asyncio.wait({running})
        assert now() == 2
        assert limits.problems(100) == []
        if order == "cancel after":
            # By then the handler may have ended.
            assert running.cancelled() or isinstance(running.exception(), HandlerTimeoutError)
        else:
            assert running.cancelled()

    run_virtual(main())


@virtual
async def test_an_outer_cancellation_of_one_that_goes_on_stays_one():
    """The cancellation ends a handler that its time limit could not end."""
    limits = TimeLimits()

    async def swallows_one():
        with contextlib.suppress(asyncio.CancelledError):
            await deep()
        await deep()

    running = asyncio.create_task(limits.run(swallows_one, 2, RECORD))
    await asyncio.sleep(5)
    assert len(limits.problems(now())) == 1
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert limits.problems(now()) == []


@pytest.mark.parametrize("sleep_sec", [2 - 1e-9, 2, 2 + 1e-9])
def test_a_handler_that_ends_about_at_the_limit_has_one_end(sleep_sec):
    """It ends with its result or with the time limit, and in both cases no later cancellation follows."""

    async def handle():
        await asyncio.sleep(sleep_sec)
        return "result"

    async def main():
        limits = TimeLimits()
        ends = set()
        for _ in range(3):
            try:
                ends.add(await limits.run(handle, 2, RECORD))
            except HandlerTimeoutError:
                ends.add("time-out")
            await asyncio.sleep(100)
            assert limits.problems(now()) == []
        return ends

    ends = run_virtual(main())
    assert len(ends) == 1
    assert sleep_sec == 2 or ends == ({"result"} if sleep_sec < 2 else {"time-out"})


@pytest.mark.parametrize("end", ["in time", "cancelled", "raises", "swallows", "goes on"])
def test_nothing_is_left_for_the_garbage_collector(end):
    """The record, its error and the objects on the handler's stack are freed with the task."""

    class Thing:
        """An object on a handler's stack."""

    async def handle(_thing):
        if end == "in time":
            await asyncio.sleep(1)
        elif end == "cancelled":
            await deep()
        elif end == "goes on":
            await sleep_on(7)
        else:
            try:
                await deep()
            except asyncio.CancelledError:
                if end == "raises":
                    raise ValueError from None

    async def one(limits):
        with contextlib.suppress(HandlerTimeoutError):
            await limits.run(functools.partial(handle, Thing()), 2, Thing())

    async def main():
        limits = TimeLimits()
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                await asyncio.create_task(one(limits))
            await asyncio.sleep(100)
            assert not [each for each in gc.get_objects() if isinstance(each, Thing)]
        finally:
            gc.enable()

    run_virtual(main())


async def test_a_synchronous_handler_keeps_its_place_until_its_thread_ends():
    """A thread can't be cancelled, and a retry must not run at the same time; in real time, run as FastStream does."""
    limits, end = TimeLimits(), threading.Event()
    running = asyncio.create_task(limits.run(lambda: run_in_threadpool(end.wait, 30), 0.05, RECORD))
    try:
        await wait_until(lambda: running.done() or limits.problems(now()), 10, "the end of its grace")
        assert not running.done()
        assert "in run_in_threadpool" in limits.problems(now())[0]
    finally:
        end.set()
        await asyncio.wait({running})
    with pytest.raises(HandlerTimeoutError, match="in run_in_threadpool"):
        await running


async def test_a_handler_that_goes_on_after_a_thread_is_cancelled_then():
    """It is cancelled at its first await after the thread."""
    limits, end = TimeLimits(), threading.Event()

    async def handle():
        await run_in_threadpool(end.wait, 30)
        await asyncio.sleep(30)

    running = asyncio.create_task(limits.run(handle, 0.05, RECORD))
    await wait_until(lambda: running.done() or limits.problems(now()), 10, "the end of its grace")
    end.set()
    with pytest.raises(HandlerTimeoutError):
        await asyncio.wait_for(running, 10)
    assert limits.problems(now() + 100) == []
