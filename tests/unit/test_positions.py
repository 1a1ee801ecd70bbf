"""A position that a reset has found is committed before the records of the partition are delivered.

Invariants: I7, I13.
"""

import asyncio
import functools
import logging

import pytest
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import UnknownError
from aiokafka.structs import OffsetAndMetadata
from typing_extensions import override

from faststream_concurrent_kafka import KafkaBatchCommitter
from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._partition.offset_map import OffsetMap
from faststream_concurrent_kafka._subscriber.positions import Positions
from faststream_concurrent_kafka._upstream import hooks
from faststream_concurrent_kafka._upstream.pauses import Pauses, Reason
from faststream_concurrent_kafka.testing import FakeKafka, FakeKafkaConsumer, run_virtual


TOPIC, GROUP = "orders", "billing"
P0, P1 = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)


class Member(ConsumerRebalanceListener):
    """A consumer with `Positions`, whose records a test admits and completes."""

    def __init__(self, kafka, reset):
        self.consumer = FakeKafkaConsumer(kafka=kafka, group_id=GROUP, auto_offset_reset=reset)
        self.committer = KafkaBatchCommitter(commit_batch_timeout_sec=0.1, commit_metadata=True, commit_renewal_sec=10)
        self.committer.spawn()
        self.offsets = self.committer.watch(self.consumer)
        self.offsets.is_group_managed = True
        hooks.watch_seeks(self.consumer, self.offsets.forget_on_seek)
        self.pauses = Pauses(self.consumer)
        request = functools.partial(self.committer.request, self.consumer)
        self.positions = Positions("it", self.consumer, self.offsets, self.pauses, request)
        self.offsets.on_ack = lambda key, _ledger: self.positions.acknowledged(key)

    @override
    async def on_partitions_revoked(self, revoked):
        await self.committer.hold(self.consumer)
        await self.committer.flush(self.consumer, timeout_sec=1)
        self.committer.end_epoch(self.consumer)

    @override
    async def on_partitions_assigned(self, assigned):
        self.positions.watch()
        self.committer.release(self.consumer)

    async def get(self, count=1):
        """Fetch and admit so many records."""
        tasks = []
        for _ in range(count):
            raw = await self.consumer.getone()
            tasks.append(Admission((raw.topic, raw.partition), raw.offset, timestamp=0))
            self.committer.admit(self.consumer, tasks[-1])
        return tasks

    def complete(self, tasks):
        """Complete these records."""
        for task in tasks:
            self.committer.complete(task)


def _at(offset):
    return OffsetAndMetadata(offset, "")


def play(scenario, *, reset="latest", records=10, committed=None):
    """Run a scenario with a member, on a broker with some records in each partition."""

    async def main():
        kafka = FakeKafka({TOPIC: 2})
        for number in range(2 * records):
            kafka.append(TOPIC, number % 2, b"old")
        kafka.groups[GROUP].committed.update(committed or {})
        member = Member(kafka, reset)
        member.consumer.subscribe([TOPIC], listener=member)
        try:
            await member.consumer.start()
            await scenario(kafka, member)
        finally:
            await member.consumer.stop()
            await member.committer.close()

    run_virtual(main())


def kept(kafka):
    """Return the group's committed offsets."""
    return {key.partition: entry.offset for key, entry in kafka.groups[GROUP].committed.items()}


async def until(condition):
    """Wait until a condition holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 60
    while not condition():
        assert loop.time() < deadline, "it never came"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(("reset", "found"), [("latest", 10), ("earliest", 0)])
def test_each_partition_has_a_committed_offset_from_the_assignment_on(reset, found):
    """Also a partition without records."""

    async def scenario(kafka, _member):
        await until(lambda: kept(kafka) == {0: found, 1: found})
        assert len(kafka.commits) == 1

    play(scenario, reset=reset)


def test_nothing_is_delivered_before_the_position_is_committed():
    """Records wait for that commit."""

    async def scenario(kafka, member):
        with kafka.hold_commits() as holds:
            await holds.wait()
            kafka.append(TOPIC, 0, b"new")
            delivered = asyncio.create_task(member.get())
            await asyncio.sleep(3)
            assert not delivered.done()
            assert member.consumer.paused() == {P0, P1}
        (task,) = await delivered
        assert kept(kafka) == {0: 10, 1: 10}
        assert task.offset == 10

    play(scenario)


def test_a_commit_of_positions_that_fails_is_tried_again(caplog):
    """The partition waits, and is resumed when a commit succeeds."""
    caplog.set_level(logging.WARNING)

    async def scenario(kafka, member):
        kafka.fail_commits(UnknownError(), times=5)
        await until(lambda: kept(kafka) == {0: 10, 1: 10})
        assert member.consumer.paused() == set()
        assert not member.committer.problems()

    play(scenario)


def test_what_is_committed_is_not_committed_again():
    """And the partition is not paused."""

    async def scenario(kafka, member):
        await member.get(3)
        assert not kafka.commits
        assert member.consumer.paused() == set()

    play(scenario, committed={P0: _at(4), P1: _at(4)})


@pytest.mark.parametrize("kind", ["another member", "the same again"])
def test_what_was_found_outlasts_a_rebalance(kind):
    """The next owner begins at the position, although no record was delivered and the commit was held."""

    async def scenario(kafka, member):
        await until(lambda: any(each.ledger is not None for each in member.offsets.partitions.values()))
        other = Member(kafka, "latest")
        if kind == "another member":
            other.consumer.subscribe([TOPIC], listener=other)
            await other.consumer.start()
        else:
            member.consumer.lose_membership()
        for partition in (0, 1):
            kafka.append(TOPIC, partition, b"new")
        await until(lambda: kept(kafka) == {0: 10, 1: 10})
        assert [task.offset for task in await member.get()] == [10]
        await other.consumer.stop()
        await other.committer.close()

    play(scenario)


@pytest.mark.parametrize("reset", ["latest", "earliest"])
def test_a_reset_in_mid_epoch_is_committed_before_it_is_followed(reset):
    """Retention has deleted the records at the position: the new position is committed before it is used."""

    async def scenario(kafka, member):
        member.complete(await member.get(4))
        await until(lambda: kept(kafka) == {0: 2, 1: 2} or sum(kept(kafka).values()) == 4)
        member.pauses.add(Reason.WINDOW, P0)
        for _ in range(20):
            kafka.append(TOPIC, 0, b"new")
        kafka.delete_records(P0, 15)
        with kafka.hold_commits() as holds:
            member.pauses.remove(Reason.WINDOW, P0)
            delivered = asyncio.create_task(member.consumer.getone(P0))
            await holds.wait()
            kafka.append(TOPIC, 0, b"newer")
            await asyncio.sleep(1)
            assert not delivered.done()
        found = 30 if reset == "latest" else 15
        assert (await delivered).offset == found
        assert kept(kafka)[0] == found

    play(scenario, reset=reset, committed={P0: _at(0), P1: _at(0)})


@pytest.mark.parametrize("seek", ["seek", "seek_to_end"])
def test_a_seek_commits_past_nothing(seek):
    """Records that run while the user seeks are delivered again after a crash."""

    async def scenario(kafka, member):
        tasks = await member.get(3)
        if seek == "seek":
            member.consumer.seek(P0, 8)
            member.consumer.seek(P1, 8)
        else:
            await member.consumer.seek_to_end()
        kafka.append(TOPIC, 0, b"new")
        later = await member.get()
        member.complete(later)
        await asyncio.sleep(3)
        for key in (P0, P1):
            first = min([task.offset for task in tasks if task.topic_partition == key], default=None)
            assert first is None or kept(kafka)[key.partition] == first
        member.complete(tasks)
        await until(lambda: kept(kafka)[0] == later[0].offset + 1)

    play(scenario, committed={P0: _at(0), P1: _at(0)})


def test_where_the_user_begins_is_committed():
    """A seek right after the assignment, without a committed offset: aiokafka has not begun a reset by then."""

    async def scenario(kafka, member):
        member.consumer.seek(P0, 7)
        assert [task.offset for task in await member.get()] == [7]
        assert kept(kafka)[0] == 7

    play(scenario)


def test_the_offsets_of_idle_partitions_are_committed_again():
    """With the same metadata, which is still valid and stored nowhere else."""
    metadata = OffsetMap.of(4, 0, admitted=8, unfinished=[4]).dump()

    async def scenario(kafka, member):
        await member.consumer.position(P1)
        kept_before = dict(kafka.groups[GROUP].committed)
        for _ in range(3):
            await asyncio.sleep(9)
            member.committer.renew()
            await asyncio.sleep(2)
            member.committer.renew()
            await asyncio.sleep(0.1)
        assert kafka.groups[GROUP].committed == kept_before
        assert len(kafka.commits) == 3

    play(scenario, committed={P0: OffsetAndMetadata(4, metadata), P1: _at(10)})
