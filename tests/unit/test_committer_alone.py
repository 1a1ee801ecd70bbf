"""The committer without the handler, as in the specification: the offsets of sent tasks are committed."""

import asyncio
import dataclasses
import logging
from unittest import mock

import pytest
from aiokafka import TopicPartition
from faststream.kafka import TopicPartition as FastStreamTopicPartition

from faststream_concurrent_kafka import CommitterIsDeadError, KafkaBatchCommitter, KafkaCommitTask
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.scripted import ScriptedConsumer


T0, T1 = TopicPartition("orders", 0), TopicPartition("orders", 1)


class Consumer(ScriptedConsumer):
    """Delivers records whose tasks never end by themselves."""

    def __init__(self, *partitions):
        super().__init__(*partitions)
        self.stuck = []


def play(scenario, *, closed_sec=30.0):
    """Run a scenario with a spawned committer and a consumer; check that the close takes at most so long."""

    async def main():
        committer, consumer = KafkaBatchCommitter(commit_batch_timeout_sec=1.0), Consumer(T0, T1)
        committer.spawn()
        await scenario(committer, consumer)
        began = asyncio.get_running_loop().time()
        await committer.close()
        assert asyncio.get_running_loop().time() - began <= closed_sec
        for task in consumer.stuck:
            assert not task.done()
            task.cancel()
        await asyncio.gather(*consumer.stuck, return_exceptions=True)

    run_virtual(main())


async def send(committer, consumer, *durations_sec, partition=T0, first=0):
    """Send a task for each record, which takes a given time, is cancelled, or fails."""
    sent = []
    for number, duration_sec in enumerate(durations_sec):
        task = asyncio.create_task(work(duration_sec))
        if duration_sec == "cancelled":
            task.cancel()
        elif duration_sec == "stuck":
            consumer.stuck.append(task)
        sent.append(task)
        await committer.send_task(
            KafkaCommitTask(asyncio_task=task, topic_partition=partition, offset=first + number, consumer=consumer)
        )
    return sent


async def work(duration_sec):
    if duration_sec == "stuck":
        await asyncio.Event().wait()
    elif duration_sec == "fails":
        raise ValueError("the work has failed")
    else:
        await asyncio.sleep(duration_sec)


def test_a_task_is_keyword_only_frozen_and_comparable():
    """It takes the `TopicPartition` of either library."""

    async def main():
        future, consumer = asyncio.get_running_loop().create_future(), ScriptedConsumer(T0)
        task = KafkaCommitTask(asyncio_task=future, topic_partition=T0, offset=5, consumer=consumer)
        assert task == KafkaCommitTask(asyncio_task=future, topic_partition=T0, offset=5, consumer=consumer)
        assert task != dataclasses.replace(task, offset=6)
        assert len({task, dataclasses.replace(task)}) == 1
        with pytest.raises(dataclasses.FrozenInstanceError):
            task.offset = 6  # ty: ignore[invalid-assignment]
        with pytest.raises(TypeError, match="positional"):
            KafkaCommitTask(future, T0, 5, consumer)  # ty: ignore[too-many-positional-arguments, missing-argument]

    run_virtual(main())


class OnlyCommits:
    """What a user's test may hand over in place of a consumer."""

    def __init__(self):
        self.commit = mock.AsyncMock()


@pytest.mark.parametrize("stand_in", [OnlyCommits, mock.AsyncMock, lambda: mock.MagicMock(commit=mock.AsyncMock())])
def test_a_stand_in_that_knows_no_assignment_is_committed_for(stand_in):
    """Of a real consumer, only what it owns is committed."""

    async def scenario(committer, _consumer):
        consumer = stand_in()
        await send(committer, consumer, 0.0, 0.0)
        await committer.commit_all()
        consumer.commit.assert_awaited_once_with({T0: 2})
        assert committer.is_healthy

    play(scenario)


@pytest.mark.parametrize("partition", [T0, FastStreamTopicPartition("orders", 0)], ids=["aiokafka", "faststream"])
def test_records_that_finish_out_of_order_are_committed_up_to_the_first_unfinished_one(partition):
    """Also with a gap between their offsets."""

    async def scenario(committer, consumer):
        await send(committer, consumer, 0.0, 5.0, 0.0, partition=partition)
        await send(committer, consumer, 0.0, partition=partition, first=10)
        await asyncio.sleep(2)
        assert consumer.committed == {T0: 1}
        await asyncio.sleep(5)
        assert consumer.committed == {T0: 11}

    play(scenario)


def test_a_task_that_fails_completes_its_record_and_a_cancelled_one_does_not():
    """A failure is for the code that has sent the task, and completes the record."""

    async def scenario(committer, consumer):
        failed, *_ = await send(committer, consumer, "fails", 0.0, "cancelled", 0.0)
        await committer.commit_all()
        assert consumer.committed == {T0: 2}
        assert isinstance(failed.exception(), ValueError)

    play(scenario)


def test_commit_all_waits_for_the_tasks_that_were_sent_and_then_commits():
    """For every consumer and partition."""

    async def scenario(committer, consumer):
        other = Consumer(T1)
        await send(committer, consumer, 3.0, 1.0)
        await send(committer, other, 2.0, partition=T1, first=7)
        began = asyncio.get_running_loop().time()
        await committer.commit_all(flush_timeout_sec=10)
        assert asyncio.get_running_loop().time() - began == pytest.approx(3, abs=0.1)
        assert (consumer.committed, other.committed) == ({T0: 2}, {T1: 8})

    play(scenario)


def test_commit_all_waits_no_longer_than_it_was_told():
    """A stuck task holds back only its own partition, and is not cancelled."""

    async def scenario(committer, consumer):
        _, stuck, _ = await send(committer, consumer, 0.0, "stuck", 0.0)
        await send(committer, consumer, 0.0, 0.0, partition=T1)
        began = asyncio.get_running_loop().time()
        await committer.commit_all(flush_timeout_sec=2.5)
        assert asyncio.get_running_loop().time() - began == pytest.approx(2.5, abs=0.1)
        assert consumer.committed == {T0: 1, T1: 2}
        assert not stuck.done()

    play(scenario)


def test_a_close_with_a_stuck_task_is_bounded_and_names_what_it_leaves(caplog):
    """Finished records are committed all the same."""

    async def scenario(committer, consumer):
        await send(committer, consumer, 0.0, "stuck", 0.0)
        await committer.close(flush_timeout_sec=1.5)
        assert consumer.committed == {T0: 1}
        assert not committer.is_alive

    with caplog.at_level(logging.WARNING, "faststream_concurrent_kafka"):
        play(scenario)
    (said,) = caplog.messages
    assert "orders[0]@1" in said


def test_a_close_while_the_broker_does_not_answer_is_bounded():
    """It waits for the request in flight, and for one more."""

    async def scenario(committer, consumer):
        await send(committer, consumer, 0.0)
        consumer.hold = asyncio.Event()
        await asyncio.sleep(2)
        assert consumer.in_flight == 1

    play(scenario, closed_sec=6.0)


def test_a_close_that_finds_everything_finished_says_nothing(caplog):
    """No record is left, so the log has no warning."""

    async def scenario(committer, consumer):
        await send(committer, consumer, 0.5, 1.0)

    with caplog.at_level(logging.WARNING, "faststream_concurrent_kafka"):
        play(scenario)
    assert not caplog.messages


def test_a_task_that_resolves_after_the_close_changes_nothing():
    """Its consumer may be gone."""

    async def scenario(committer, consumer):
        await send(committer, consumer, 20.0)
        await committer.close(flush_timeout_sec=1.0)
        await asyncio.sleep(30)
        assert not consumer.commits

    play(scenario)


def test_a_dead_committer_takes_no_task():
    """`send_task` raises if the main task has died, or was never spawned."""

    async def scenario(committer, consumer):
        consumer.errors = [bug := TypeError("a bug")]
        await send(committer, consumer, 0.0)
        await asyncio.sleep(3)
        with pytest.raises(CommitterIsDeadError) as raised:
            await send(committer, consumer, 0.0, first=1)
        assert raised.value.__cause__ is bug
        with pytest.raises(CommitterIsDeadError):
            await committer.commit_all()
        assert not committer.is_healthy
        with pytest.raises(CommitterIsDeadError):
            await send(KafkaBatchCommitter(), consumer, 0.0)

    play(scenario)


def test_a_cancelled_commit_all_cancels_no_task():
    """The tasks belong to the code that has sent them."""

    async def scenario(committer, consumer):
        task, *_ = await send(committer, consumer, 5.0)
        waiting = asyncio.create_task(committer.commit_all(flush_timeout_sec=60))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        await asyncio.sleep(10)
        assert task.done()
        assert not task.cancelled()
        assert consumer.committed == {T0: 1}

    play(scenario)
