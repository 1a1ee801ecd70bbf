"""The attachment of a subscriber and its rebalances: a test for each rule that one line keeps."""

import asyncio

import pytest
from faststream.kafka import TopicPartition

from faststream_concurrent_kafka import FailurePolicy, get_kafka_handler_report
from tests.integration.helpers import manual
from tests.unit.attached import GROUP, TOPIC, play


def rebalance(world):
    """Let every member join again."""
    world.kafka.groups[GROUP].rebalance()


def test_the_handlers_get_a_turn_while_records_are_buffered():
    """Fetching buffered records does not suspend: without extra turns, all would be admitted before one runs."""
    in_flight = []

    async def scenario(world):
        async def handle(_number: int):
            in_flight.append(len(world.handler.records))

        world.send(1000)
        await world.subscriber(handle)
        await world.until(lambda: len(in_flight) == 1000)
        assert max(in_flight) <= 64

    play(scenario, concurrency_limit=0)


def test_a_stop_commits_again_where_a_group_has_no_members():
    """The broker may have expired the offsets of an idle group, or may soon."""

    async def scenario(world):
        async def handle(_number: int):
            pass

        world.send(5)
        made = world.broker.subscriber(partitions=[TopicPartition(TOPIC, 0)], **manual(TOPIC))
        made(handle)
        await world.reinitialize()
        await made.start()
        await world.until(lambda: world.committed() == 5)
        world.kafka.groups[GROUP].committed.clear()
        await made.stop()
        assert world.committed() == 5

    play(scenario)


def test_a_record_that_outlasts_a_rebalance_keeps_its_age():
    """After its second delivery the record is as old as at its first one: it has held up that offset since."""
    gate = asyncio.Event()

    async def scenario(world):
        async def handle(_number: int):
            await gate.wait()

        world.send(1)
        await world.subscriber(handle)
        await world.until(lambda: len(world.handler.records) == 1)
        await asyncio.sleep(100)
        rebalance(world)
        await asyncio.sleep(5)
        (partition,) = get_kafka_handler_report(world.broker.context).partitions
        assert partition.oldest_unfinished_age_sec == pytest.approx(105, abs=1)
        assert len(world.handler.records) == 1
        gate.set()
        await world.until(lambda: world.committed() == 1)

    play(scenario, rebalance_flush_timeout_sec=0.5)


@pytest.mark.parametrize("stays", [True, False])
def test_a_handler_is_cancelled_only_if_its_partition_went_to_another_member(stays):
    """A handler whose partition came back goes on, and so does one that began after that."""
    started, ended, cancelled = [], [], []

    async def scenario(world):
        async def handle(number: int):
            started.append(number)
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                cancelled.append(number)
                raise
            ended.append(number)

        world.send(1, partition=1)
        subscriber = await world.subscriber(handle)
        await world.until(lambda: len(started) == 1)
        if stays:
            rebalance(world)
        else:
            # The members take turns: the second one gets the second partition.
            other = await world.other_member()
            await world.until(other.assignment)
            assert {tp.partition for tp in other.assignment()} == {1}
        world.send(1, partition=0)
        await asyncio.sleep(2)
        assert cancelled == ([] if stays else [0])
        await world.until(lambda: len(ended) == (2 if stays else 1))
        assert subscriber.running

    # One slot: records that come back are not fetched before the first handler has ended.
    play(scenario, partitions=2, rebalance_flush_timeout_sec=0.5, cancel_lost_handlers=True, concurrency_limit=1)


def test_a_call_by_hand_is_not_cancelled_with_the_partitions():
    """Its record was not admitted, so it belongs to no partition that could be lost."""
    ended = []

    async def scenario(world):
        async def handle(number: int):
            await asyncio.sleep(5)
            ended.append(number)

        subscriber = await world.subscriber(handle)
        raw = world.kafka.append(TOPIC, 1, b"7")
        await world.other_member()
        call = asyncio.create_task(subscriber.process_message(raw))
        await world.until(lambda: len(world.handler.records) == 1)
        rebalance(world)
        await call
        assert ended == [7]

    play(scenario, partitions=2, rebalance_flush_timeout_sec=0.5, cancel_lost_handlers=True)


def test_a_record_that_outlasts_a_rebalance_and_comes_back_is_tried_again_like_any_other():
    """Not while the partition is revoked, since another member may handle it."""
    attempts = []

    async def scenario(world):
        async def handle(_number: int):
            attempts.append(world.handler.now())
            await asyncio.sleep(5)
            if len(attempts) == 1:
                raise ValueError

        world.send(1)
        await world.subscriber(handle)
        await world.until(lambda: attempts)
        rebalance(world)
        await world.until(lambda: world.committed() == 1)
        assert len(attempts) == 2

    play(scenario, rebalance_flush_timeout_sec=0.5, on_failure=FailurePolicy(max_attempts=3))


def test_a_record_that_outlasts_two_rebalances_is_run_once():
    """Each delivery is recognised as the same record."""
    started, gate = [], asyncio.Event()

    async def scenario(world):
        async def handle(number: int):
            started.append(number)
            await gate.wait()

        world.send(3)
        await world.subscriber(handle)
        await world.until(lambda: len(started) == 3)
        for generation in range(2, 5):
            rebalance(world)
            await world.until(lambda: world.kafka.groups[GROUP].generation == generation)  # noqa: B023
            await asyncio.sleep(1)
        gate.set()
        await world.until(lambda: world.committed() == 3)
        assert started == [0, 1, 2]
        assert TOPIC in repr(world.consumers[0].assignment())

    play(scenario, rebalance_flush_timeout_sec=0.5)
