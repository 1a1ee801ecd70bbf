"""The shared clock of all simulated processes."""

import asyncio
import contextlib
import random

from tests.simulation.loops import Clock, ProcessLoop, Scheduler


def test_a_wait_that_is_too_small_for_the_time_ends():
    """The clock advances even if the remaining wait is too small to change its value."""

    async def main(loop, step_sec):
        for number in range(2000):
            await asyncio.sleep(number * step_sec % 1)
            began = loop.time()
            while (left := 0.1 - (loop.time() - began)) > 0:  # noqa: ASYNC110 - the clock is what is tested
                await asyncio.sleep(left)

    clock = Clock()
    scheduler = Scheduler(clock, random.Random(1), lambda _: contextlib.nullcontext(), lambda: None)  # noqa: S311 - no secret
    loops = [ProcessLoop(clock) for _ in range(2)]
    scheduler.loops += loops
    tasks = [loop.create_task(main(loop, step_sec)) for loop, step_sec in zip(loops, (1 / 7, 1 / 11), strict=True)]
    assert scheduler.run_to(10_000, until=lambda: all(task.done() for task in tasks))
    for task, loop in zip(tasks, loops, strict=True):
        assert task.exception() is None
        loop.close()
