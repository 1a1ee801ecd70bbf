"""The lines at which a task is suspended, as logs and reports name them."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from faststream_concurrent_kafka._runtime.stack import frames_of, suspended_at
from faststream_concurrent_kafka.testing import run_virtual


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtual(test(*args, **kwargs))

    return run


async def deep():
    await deeper()


async def deeper():
    await asyncio.sleep(100)


@virtual
async def test_the_innermost_places_are_named_outermost_first():
    """At most three places, by file, line and function."""

    async def outer():
        await middle()

    async def middle():
        await deep()

    task = asyncio.create_task(outer())
    await asyncio.sleep(1)
    places = suspended_at(task).split(" > ")
    assert [place.split(" in ")[1] for place in places] == ["deep", "deeper", "sleep"]
    assert all(place.split(":")[1].split()[0].isdigit() for place in places)
    assert places[0].startswith("test_suspension.py:")
    task.cancel()
    await asyncio.wait({task})


@virtual
async def test_an_async_generator_is_named_at_least_by_who_awaits_it():
    """Also in an async context manager."""

    async def numbers():
        yield 1
        await asyncio.sleep(100)

    @contextlib.asynccontextmanager
    async def resource():
        await asyncio.sleep(100)
        yield

    async def iterates():
        async for _ in numbers():
            pass

    async def enters():
        async with resource():
            pass

    for waits in (iterates, enters):
        task = asyncio.create_task(waits())
        await asyncio.sleep(1)
        assert f"in {waits.__name__}" in suspended_at(task)
        task.cancel()
        await asyncio.wait({task})


async def test_what_runs_in_a_thread_is_seen_as_the_wait_for_it():
    """In real time, since a thread has no virtual one."""
    loop = asyncio.get_running_loop()
    began, end = asyncio.Event(), asyncio.Event()

    def work():
        loop.call_soon_threadsafe(began.set)
        asyncio.run_coroutine_threadsafe(end.wait(), loop).result(30)

    async def in_thread():
        await asyncio.to_thread(work)

    task = asyncio.create_task(in_thread())
    await began.wait()
    assert "in in_thread > " in suspended_at(task)
    assert "in to_thread" in suspended_at(task)
    end.set()
    await task


@virtual
async def test_a_task_that_has_not_started_or_has_ended_waits_nowhere():
    """Neither of the two is at any line."""
    task = asyncio.create_task(asyncio.sleep(0))
    before = suspended_at(task)
    await task
    assert suspended_at(task) == ""
    assert before == ""


@virtual
async def test_the_frames_of_the_running_task_begin_with_its_own():
    """The frames below the event loop do not belong to the task."""

    async def outer():
        return await middle()

    async def middle():
        return [frame.f_code.co_name for frame in frames_of(task)]

    task = asyncio.create_task(outer())
    assert await task == ["outer", "middle"]
