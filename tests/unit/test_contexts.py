"""Every record's task gets the same context variables, and none of another record's are kept alive."""

import asyncio
import contextvars
import gc
import logging
import weakref

import pytest
from faststream.exceptions import NackMessage

from faststream_concurrent_kafka import FailurePolicy
from tests.eager import eager_task_factory
from tests.unit.world import play


users: contextvars.ContextVar[object] = contextvars.ContextVar("users", default="clean")


class Held:
    """An object that a handler keeps in a context variable."""


@pytest.mark.parametrize("factory", [None, eager_task_factory], ids=["plain", "eager"])
@pytest.mark.parametrize("ordering", ["unordered", "key", "partition"])
def test_no_record_sees_what_the_one_before_it_has_set(ordering, factory):
    """Neither does the next record of its key, nor one that waited for its slot."""
    seen: list[object] = []

    async def process(raw):
        seen.append(users.get())
        users.set(f"set by {raw.offset}")
        await asyncio.sleep(0)
        if raw.offset == 1:
            raise ValueError

    async def scenario(world):
        asyncio.get_running_loop().set_task_factory(factory)
        for _ in range(6):
            world.deliver(process, key=b"k")
        await world.until(lambda: not len(world.handler.records))

    play(scenario, ordering=ordering, concurrency_limit=2)
    assert seen == ["clean"] * 6


def test_a_record_inherits_what_its_source_has():
    """The context of FastStream's loop if there is one, otherwise the one in which the handler was started."""
    seen: list[object] = []

    async def process(_raw):
        seen.append(users.get())
        users.set("changed")

    async def scenario(world):
        users.set("of the delivering code")
        for _ in range(2):
            await asyncio.wait({world.deliver(process).task})
        users.set("of the loop")
        world.source.context = contextvars.copy_context()
        users.set("of the delivering code")
        for _ in range(2):
            await asyncio.wait({world.deliver(process).task})

    play(scenario)
    assert seen == ["clean", "clean", "of the loop", "of the loop"]


@pytest.mark.parametrize("how", ["done", "stops", "dead letter"])
def test_nothing_of_the_library_keeps_the_context_of_a_record(how, caplog):
    """Neither the commit timer, nor a stop that the record has called, nor the producer of its dead letter."""
    # pytest keeps log records.
    caplog.set_level(logging.CRITICAL, "faststream_concurrent_kafka")
    held: list[weakref.ref[Held]] = []

    async def process(_raw):
        thing = Held()
        held.append(weakref.ref(thing))
        users.set(thing)
        await asyncio.sleep(0)
        if how == "stops":
            raise SystemExit
        if how == "dead letter":
            raise NackMessage(delay=0)

    async def scenario(world):
        its_own = world.source.stop

        async def stop(**options):
            assert users.get() == "clean"
            await asyncio.sleep(50)
            return await its_own(**options)

        world.source.stop = stop
        world.source.stop_application = lambda: users.get() == "clean" or pytest.fail("the record's context")
        record = world.deliver(process)
        await asyncio.wait({record.task})
        del record
        gc.collect()
        # The commit is due in a minute only, and the stop takes another.
        assert [each() for each in held] == [None] * len(held)

    play(scenario, commit_batch_timeout_sec=60, on_failure=FailurePolicy(max_attempts=2))
    assert held
