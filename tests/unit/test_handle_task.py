"""`handle_task`: a coroutine for a raw record, fired off by hand."""

import asyncio
import contextvars
import logging

import pytest
from faststream.kafka.message import KafkaMessage

from faststream_concurrent_kafka import CommitterIsDeadError, KafkaConcurrentHandler, SetupError
from faststream_concurrent_kafka.testing import FakeKafka, FakeKafkaConsumer
from tests.unit.world import T0, TOPIC, play, raw_record


GROUP = "group"
seen = contextvars.ContextVar("seen", default="nothing")


def message_of(raw, consumer):
    return KafkaMessage(raw_message=raw, body=raw.value, consumer=consumer)


class ByHand:
    """Passes the records of a consumer to `handle_task`, and reads the committed offsets."""

    def __init__(self, world, consumer):
        self.world = world
        self.consumer = consumer
        self.offset = 0

    async def hand_over(self, coroutine, headers=()):
        raw = raw_record(offset=self.offset)
        raw.headers = headers
        self.offset += 1
        await self.world.handler.handle_task(coroutine, raw, message_of(raw, self.consumer))

    async def committed(self):
        await self.world.handler.committer.commit_all()
        return await self.consumer.committed(T0)

    async def idle(self):
        await self.world.until(lambda: len(self.world.handler.records) == 0)


async def by_hand(world, group=GROUP):
    consumer = FakeKafkaConsumer(kafka=FakeKafka({TOPIC: 1}), group_id=group, auto_offset_reset="earliest")
    consumer.assign([T0])
    await consumer.start()
    return ByHand(world, consumer)


async def nothing():
    pass


def test_it_returns_at_once_and_the_offset_waits_for_the_end_of_the_task():
    """It runs in the caller's context; no commit passes it, although later tasks have ended."""

    async def scenario(world):
        hand, gate, contexts = await by_hand(world), asyncio.Event(), []

        async def handle():
            contexts.append(seen.get())
            await gate.wait()

        seen.set("the caller's")
        await hand.hand_over(nothing())
        await hand.hand_over(handle())
        await hand.hand_over(nothing())
        assert contexts == []
        await world.until(lambda: len(world.handler.records) == 1)
        assert contexts == ["the caller's"]
        assert await hand.committed() == 1
        gate.set()
        await hand.idle()
        assert await hand.committed() == 3
        assert world.handler.slots.reserved == 0

    play(scenario)


def test_no_more_run_at_once_than_there_are_slots():
    """The other tasks wait for their slots; the caller does not wait."""

    async def scenario(world):
        hand, running, most = await by_hand(world), [], []

        async def handle():
            running.append(1)
            most.append(len(running))
            await asyncio.sleep(1)
            running.pop()

        began = world.handler.now()
        for _ in range(10):
            await hand.hand_over(handle())
        assert world.handler.now() == began
        await hand.idle()
        assert max(most) == 3
        assert await hand.committed() == 10

    play(scenario, concurrency_limit=3)


def test_the_caller_waits_while_max_uncommitted_tasks_of_them_have_not_ended():
    """This bounds memory; if the waiting call is cancelled, its coroutine is closed and its record left undone."""

    async def scenario(world):
        hand, gate = await by_hand(world), asyncio.Event()
        for _ in range(4):
            await hand.hand_over(gate.wait())
        fifth = asyncio.create_task(hand.hand_over(nothing()))
        await asyncio.sleep(10)
        assert not fifth.done()
        gate.set()
        await fifth
        await hand.idle()
        assert await hand.committed() == 5
        gate.clear()
        for _ in range(4):
            await hand.hand_over(gate.wait())
        last = asyncio.create_task(hand.hand_over(nothing()))
        await asyncio.sleep(10)
        last.cancel()
        await asyncio.wait({last})
        assert last.cancelled()
        gate.set()
        await hand.idle()
        assert await hand.committed() == 9

    play(scenario, max_uncommitted_tasks=4, concurrency_limit=4)


@pytest.mark.parametrize(
    "error",
    [ValueError("broken"), SystemExit(3), asyncio.CancelledError("its own"), BaseExceptionGroup("", [OSError()])],
)
def test_what_it_raises_is_logged_once_and_its_record_is_done(error, caplog):
    """With its traceback; the failure policy does not apply, since a coroutine can't be run again."""

    async def scenario(world):
        async def fail():
            raise error

        hand = await by_hand(world)
        await hand.hand_over(fail())
        await hand.idle()
        assert await hand.committed() == 1

    with caplog.at_level(logging.WARNING):
        play(scenario)
    (entry,) = caplog.records
    assert entry.exc_info is not None
    assert entry.exc_info[1] is error
    assert f"{TOPIC}[0]@0" in entry.getMessage()


def test_a_task_that_is_cancelled_leaves_its_record_undone(caplog):
    """Also before its first step, which closes its coroutine. Later records run, and no commit passes it."""

    async def scenario(world):
        hand, gate = await by_hand(world), asyncio.Event()
        await hand.hand_over(nothing())
        await hand.hand_over(gate.wait())
        await hand.hand_over(nothing())
        (record,) = [each for each in world.handler.records if each.raw.offset == 1]
        record.task.cancel()
        await hand.idle()
        assert await hand.committed() == 1
        assert not world.handler.problems()

    with caplog.at_level(logging.WARNING):
        play(scenario)
    # The committer's log line at its close.
    (entry,) = caplog.records
    assert entry.getMessage().endswith(f": {TOPIC}[0]@1")


@pytest.mark.parametrize(("group", "is_handled"), [(GROUP, True), ("other", False)])
def test_a_record_of_another_topic_group_is_done_without_its_coroutine(group, is_handled):
    """Its header names another group than the consumer's."""

    async def scenario(world):
        hand, handled = await by_hand(world), []

        async def handle():
            handled.append(1)

        await hand.hand_over(handle(), headers=(("topic_group", group.encode()),))
        await hand.idle()
        assert bool(handled) == is_handled
        assert await hand.committed() == 1

    play(scenario)


@pytest.mark.parametrize("consumer", ["none", "no group", "no commits"])
def test_without_something_to_commit_it_is_only_handled(consumer):
    """Without a consumer (TestKafkaBroker), without a group, or with enable_batch_commit=False."""

    async def scenario(world):
        hand, handled = await by_hand(world, None if consumer == "no group" else GROUP), []
        if consumer == "none":
            hand.consumer = None

        async def handle():
            handled.append(1)

        await hand.hand_over(handle())
        await hand.idle()
        assert handled == [1]
        assert world.handler.committer.partitions() == []

    play(scenario, enable_batch_commit=consumer != "no commits")


def test_the_own_record_of_the_caller_is_not_admitted_a_second_time():
    """Its offset is committed after its handler: a second admission would look like a seek back."""

    async def scenario(world):
        hand, handled = await by_hand(world), []

        async def inner():
            handled.append(1)

        async def process(raw):
            await world.handler.handle_task(inner(), raw, message_of(raw, hand.consumer))

        world.deliver(process)
        await hand.idle()
        assert handled == [1]
        assert [(topic, ledger.frontier) for topic, _, ledger in world.handler.committer.partitions()] == [(TOPIC, 1)]

    play(scenario)


def test_a_stop_waits_for_it_and_commits():
    """Later calls raise an error, and close the coroutine."""

    async def scenario(world):
        hand, handled = await by_hand(world), []

        async def handle():
            await asyncio.sleep(5)
            handled.append(1)

        await hand.hand_over(handle())
        await world.handler.stop()
        assert handled == [1]
        assert await hand.consumer.committed(T0) == 1
        with pytest.raises(SetupError, match="initialize_concurrent_processing"):
            await hand.hand_over(handle())

    play(scenario)


def test_a_stop_cancels_it_at_its_deadline():
    """Its record is left undone, and not committed."""

    async def scenario(world):
        hand = await by_hand(world)
        await hand.hand_over(asyncio.sleep(100))
        began = world.handler.now()
        await world.handler.stop()
        assert world.handler.now() - began < 4
        assert await hand.consumer.committed(T0) is None

    play(scenario, shutdown_timeout_sec=2)


def test_a_dead_committer_takes_nothing():
    """The call raises, and the coroutine is closed."""

    async def scenario(world):
        hand = await by_hand(world)
        await world.handler.committer.close()
        with pytest.raises(CommitterIsDeadError):
            await hand.hand_over(nothing())
        assert len(world.handler.records) == 0

    play(scenario)


def test_without_arguments_it_is_the_one_handler_of_the_process():
    """With other settings, or before there is a handler, it raises an error; the latter says what to call."""
    with pytest.raises(SetupError, match="initialize_concurrent_processing"):
        KafkaConcurrentHandler()
    assert KafkaConcurrentHandler._instance is None

    async def scenario(world):
        await asyncio.sleep(0)
        assert KafkaConcurrentHandler() is world.handler
        assert KafkaConcurrentHandler(concurrency_limit=7, observer_interval=0.5) is world.handler
        with pytest.raises(SetupError, match="observer_interval"):
            KafkaConcurrentHandler(concurrency_limit=7)
        assert world.handler.is_healthy

    play(scenario, concurrency_limit=7, observer_interval=0.5)


@pytest.mark.parametrize("interval_sec", [0.1, 1.0, 20.0])
def test_the_observer_looks_that_often(interval_sec):
    """It logs a problem at its next sample; `is_healthy` reports it at once."""

    async def scenario(world):
        samples = []
        world.source.sample = lambda: samples.append(world.handler.now())
        began = world.handler.now()
        await asyncio.sleep(10.5 * interval_sec)
        assert samples == pytest.approx([began + number * interval_sec for number in range(1, 11)])
        assert world.handler.deaths() == []
        world.source.trouble = ["trouble"]
        assert not world.handler.is_healthy

    play(scenario, observer_interval=interval_sec)
