"""Records that compute take turns with the rest of the loop, and awaiting them is otherwise a plain `await` (I21)."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import itertools
import re
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from faststream_concurrent_kafka._runtime.stack import suspended_at
from faststream_concurrent_kafka._runtime.turns import BUDGET_SEC, Turns, clock_of
from faststream_concurrent_kafka._runtime.turns import paced as await_paced
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.world import play


VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
HEAVY_SEC = BUDGET_SEC * 3


class Computing:
    """`Turns` with a clock that advances only while a pass computes."""

    def __init__(self, turns=None):
        self.turns = Turns() if turns is None else turns
        self.turns.start(asyncio.get_running_loop())
        self.turns.clock = lambda: self.now_sec
        self.now_sec = 0.0

    def compute(self, sec=HEAVY_SEC):
        self.now_sec += sec


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtual(test(*args, **kwargs))

    return run


# -- a plain await -----------------------------------------------------------------------------------------------

STEPS = st.recursive(
    st.sampled_from(["turn", "sleep", "compute", "set", "get", "raise", "return", "future"]).map(lambda name: (name,)),
    lambda inner: st.one_of(
        st.tuples(
            st.sampled_from(["catch", "finally", "swallow", "timeout", "scope", "shield", "call", "task"]),
            st.lists(inner, max_size=4),
        )
    ),
    max_leaves=12,
)


class Interpreter:
    """Runs a program of steps, and notes each result and error."""

    def __init__(self, computing):
        self.computing = computing
        self.trace: list[Any] = []

    async def run(self, steps):
        for step in steps:
            name, inner = step[0], step[1:]
            self.trace.append(name)
            result = await getattr(self, f"do_{name}")(*inner)
            if result is not None:
                return result
        return None

    async def do_turn(self):
        await asyncio.sleep(0)

    async def do_sleep(self):
        await asyncio.sleep(1)

    async def do_compute(self):
        self.computing.compute()

    async def do_set(self):
        VARIABLE.set(VARIABLE.get() + 1)

    async def do_get(self):
        self.trace.append(VARIABLE.get())

    async def do_raise(self):
        raise KeyError(len(self.trace))

    async def do_return(self):
        return len(self.trace)

    async def do_future(self):
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_later(1, lambda: future.done() or future.set_exception(OSError("of a future")))
        await future

    async def do_catch(self, steps):
        try:
            return await self.run(steps)
        except Exception as error:  # noqa: BLE001 - it is written down
            self.trace.append(repr(error))

    async def do_finally(self, steps):
        try:
            return await self.run(steps)
        finally:
            self.trace.append("finally")
            await asyncio.sleep(1)

    async def do_swallow(self, steps):
        try:
            return await self.run(steps)
        except asyncio.CancelledError as error:
            # anyio names the scope by its address.
            self.trace.append(("swallowed", *(re.sub("scope [0-9a-f]+", "scope", str(each)) for each in error.args)))

    async def do_timeout(self, steps):
        async with asyncio.timeout(1.5):
            return await self.run(steps)

    async def do_scope(self, steps):
        with anyio.move_on_after(1.5) as scope:
            return await self.run(steps)
        self.trace.append(("left", scope.cancelled_caught))
        return None

    async def do_shield(self, steps):
        with anyio.CancelScope(shield=True):
            return await self.run(steps)

    async def do_call(self, steps):
        return await self.run(steps)

    async def do_task(self, steps):
        return await asyncio.create_task(self.run(steps))


async def outcome_of(program, cancel_at, await_):
    """Run a program with cancellations; return its notes, its outcome and the task's state."""
    computing = Computing()
    interpreter = Interpreter(computing)

    async def main():
        result = await await_(computing.turns, interpreter.run(program))
        return result, VARIABLE.get()

    loop = asyncio.get_running_loop()
    began = loop.time()
    task = asyncio.create_task(main())
    for at_sec in cancel_at:
        loop.call_later(at_sec + 0.25, task.cancel, f"at {at_sec}")
    await asyncio.wait({task})
    outcome: Any
    try:
        outcome = task.result()
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it is compared
        outcome = repr(error)
    return interpreter.trace, outcome, task.cancelling(), round(loop.time() - began)


class Waits:
    """Counts how often a pass was put off, and notes whether it is."""

    def __init__(self):
        self.count = 0
        self.now = False

    def begin_to_wait(self):
        assert not self.now
        self.count += 1
        self.now = True

    def go_on(self):
        assert self.now
        self.now = False


async def plainly(_turns, coroutine):
    return await coroutine


async def paced(turns, coroutine):
    waits = Waits()
    try:
        return await await_paced(turns, coroutine, waits)
    finally:
        assert not waits.now


async def paced_in_used_up_turns(turns, coroutine):
    turns.spend(HEAVY_SEC)
    return await paced(turns, coroutine)


@given(program=st.lists(STEPS, max_size=6), cancel_at=st.lists(st.integers(0, 4), max_size=2))
def test_results_errors_cancellations_scopes_and_variables_are_those_of_a_plain_await(program, cancel_at):
    """With and without steps that are put off."""
    expected = run_virtual(outcome_of(program, cancel_at, plainly))
    assert run_virtual(outcome_of(program, cancel_at, paced)) == expected
    assert run_virtual(outcome_of(program, cancel_at, paced_in_used_up_turns)) == expected


@virtual
async def test_a_cancellation_is_not_put_off():
    """Neither before the first step, which is not made then, nor after a future that is done."""
    computing, seen = Computing(), []

    async def never():
        seen.append("begun")

    async def waits(future):
        try:
            await future
        except asyncio.CancelledError as error:
            seen.append(error.args)
            raise

    async def use_up():
        computing.compute()

    future = asyncio.get_running_loop().create_future()
    second = asyncio.create_task(paced(computing.turns, waits(future)))
    await asyncio.sleep(0)
    await paced(computing.turns, use_up())
    first = asyncio.create_task(paced(computing.turns, never()))
    future.set_result(None)
    await asyncio.sleep(0)
    assert not first.done()
    first.cancel()
    second.cancel("why")
    await asyncio.wait({first, second})
    assert first.cancelled()
    assert second.cancelled()
    assert seen == [("why",)]


@virtual
async def test_closed_it_closes_what_it_awaits():
    """No coroutine is left that was never awaited."""
    seen = []

    async def waits():
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            seen.append("closed")

    turns = Computing().turns
    coroutine = paced(turns, waits())
    coroutine.send(None)
    coroutine.close()
    assert seen == ["closed"]
    turns.spend(HEAVY_SEC)
    coroutine = paced(turns, waits())
    coroutine.send(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coroutine.close()
        del coroutine
        gc.collect()
    assert seen == ["closed"]


@virtual
async def test_the_stack_is_followed_through_it():
    """Down to the line of the innermost await."""

    async def innermost():
        await asyncio.sleep(100)

    task = asyncio.create_task(paced(Computing().turns, innermost()))
    await asyncio.sleep(1)
    assert [place.split(" in ")[1] for place in suspended_at(task).split(" > ")] == ["paced", "innermost", "sleep"]
    task.cancel()
    await asyncio.wait({task})


# -- taking turns ------------------------------------------------------------------------------------------------


async def count_turns(counted):
    while True:
        counted.append(None)
        await asyncio.sleep(0)


@pytest.mark.parametrize("when", ["at its begin", "after an await"])
def test_between_two_records_that_compute_others_get_several_turns(when):
    """Steps run in the order in which the records woke up, and all records end."""

    async def scenario(world):
        computing, turns, seen, gate = Computing(world.handler.turns), [], [], asyncio.Event()

        def process(number):
            async def process(_raw):
                if when == "after an await":
                    await gate.wait()
                seen.append((number, len(turns)))
                computing.compute()

            return process

        records = [world.handle(process(number)) for number in range(20)]
        if when == "after an await":
            await asyncio.sleep(1)
        gate.set()
        counter = asyncio.create_task(count_turns(turns))
        await asyncio.wait({record.task for record in records})
        counter.cancel()
        assert [number for number, _ in seen] == list(range(20))
        gaps = [after - before for (_, before), (_, after) in itertools.pairwise(seen)]
        assert min(gaps) >= 4
        assert max(gaps) <= 8
        assert await world.committed() == 20

    play(scenario)


def test_what_computes_little_is_not_put_off():
    """A hundred records that wake up together and use half of a turn's budget all run in that turn."""

    async def scenario(world):
        computing, turns, seen, gate = Computing(world.handler.turns), [], [], asyncio.Event()

        async def process(_raw):
            await gate.wait()
            seen.append(len(turns))
            computing.compute(BUDGET_SEC / 200)

        records = [world.handle(process) for _ in range(100)]
        await asyncio.sleep(1)
        gate.set()
        counter = asyncio.create_task(count_turns(turns))
        await asyncio.wait({record.task for record in records})
        counter.cancel()
        assert len(seen) == 100
        assert len(set(seen)) == 1

    play(scenario)


def test_a_stop_ends_what_was_put_off():
    """It is cancelled at the deadline like any other record; its pass has not begun."""

    async def scenario(world):
        computing = Computing(world.handler.turns)

        async def process(_raw):
            computing.compute()
            await asyncio.sleep(1000)

        records = [world.handle(process) for _ in range(5)]
        await asyncio.sleep(0)
        await world.handler.runner.cancel(lambda _: True)
        assert len(world.handler.records) == 0
        assert all(record.task.done() for record in records)
        assert await world.committed() == 0

    play(scenario)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_real_loops_are_timed_within_their_turns(run):
    """uvloop's own clock stands still within a turn; with virtual time only virtual seconds count."""

    async def main():
        clock = clock_of(asyncio.get_running_loop())
        began = clock()
        with contextlib.suppress(ZeroDivisionError):
            while clock() - began < 0.001:
                sum(range(1000))
        return clock() > began

    assert run(main())
    assert not run_virtual(advances_while_it_computes())


async def advances_while_it_computes():
    clock = clock_of(asyncio.get_running_loop())
    began = clock()
    sum(range(100_000))
    return clock() > began
