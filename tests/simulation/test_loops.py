"""The clock that all simulated processes share."""

import asyncio
import contextlib
import random

from tests.simulation.loops import Clock, ProcessLoop, Scheduler


def test_a_wait_that_is_too_small_for_the_time_ends():
    """The clock of a process does not stand still because what is left to wait can't be added to it."""

    async def main(loop, rng):
        for _ in range(2000):
            await asyncio.sleep(rng.random())
            began = loop.time()
            while (left := 0.1 - (loop.time() - began)) > 0:
                await asyncio.sleep(left)

    clock = Clock()
    scheduler = Scheduler(clock, random.Random(2), lambda _: contextlib.nullcontext(), lambda: None)
    loops = [ProcessLoop(clock) for _ in range(2)]
    scheduler.loops += loops
    tasks = [loop.create_task(main(loop, random.Random(seed))) for seed, loop in enumerate(loops)]
    assert scheduler.run_to(10_000, until=lambda: all(task.done() for task in tasks))
    for task, loop in zip(tasks, loops, strict=True):
        assert task.exception() is None
        loop.close()
