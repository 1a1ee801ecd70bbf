"""Which records commit metadata lists as finished, and which the next owner skips, against the log itself (I15)."""

import asyncio
import gc
import random
import time

import pytest
from aiokafka import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from faststream_concurrent_kafka import KafkaBatchCommitter
from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._commit.consumer import ConsumerOffsets
from faststream_concurrent_kafka._partition.offset_map import OffsetMap
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.scripted import ScriptedConsumer


T0 = TopicPartition("orders", 0)
NOW = 1_700_000_000_000


class Log:
    """Offsets and time stamps of one partition; `generation` distinguishes records that had the same offset in turn."""

    def __init__(self, seed, count, *, most_gap):
        self.random = random.Random(seed)  # noqa: S311 - to be repeated
        self.records = []
        self.most_gap = most_gap
        self.generation = 0
        self.append(count, lambda index: NOW + 10 * index + self.random.randrange(10))

    def append(self, count, timestamp):
        offset = self.records[-1][0] if self.records else 99
        for index in range(count):
            offset += self.random.randint(1, self.most_gap)
            self.records.append((offset, timestamp(index), self.generation))

    def replace_from(self, place, timestamp):
        """Lose the end of the log, as in an unclean election, and append as many records again."""
        lost = len(self.records) - place
        del self.records[place:]
        self.generation += 1
        self.append(lost, timestamp)


class Owner:
    """Gets the records of a log from the committed offset on, skips those that metadata lists, and finishes some."""

    def __init__(self, committed=(100, "")):
        self.offsets = ConsumerOffsets(ScriptedConsumer(T0), writes_metadata=True)
        self.committed, metadata = committed
        if metadata:
            self.offsets.partition(T0).restored = OffsetMap.parse(metadata, self.committed)
        self.skipped = []
        self.tasks = []

    def deliver(self, records):
        for offset, timestamp, generation in records:
            if offset < self.committed:
                continue
            task = Admission(T0, offset, timestamp=timestamp)
            if self.offsets.partition(T0).admit(task) is None:
                self.tasks.append((task, generation))
            else:
                task.ledger.complete(offset)
                self.skipped.append((offset, generation))

    def finish(self, chosen):
        done = []
        for index in sorted(chosen, reverse=True):
            if index < len(self.tasks):
                task, generation = self.tasks.pop(index)
                task.ledger.complete(task.offset)
                done.append((task.offset, generation))
        return set(done)

    def commit(self, now=0.0):
        sent = self.offsets.prepare(T0, with_metadata=True, made_since=float("inf"), now=now)
        assert sent is not None
        return sent.frontier, sent.metadata


CHOSEN = st.sets(st.integers(0, 200))


@given(
    seed=st.integers(0, 10**6), most_gap=st.sampled_from([1, 1, 3, 100]), runs=st.lists(CHOSEN, min_size=1, max_size=4)
)
def test_what_has_finished_is_known_over_any_number_of_owners(seed, most_gap, runs):
    """Owners get different numbers of records; none handles a record again that any of them has finished."""
    log, finished, committed = Log(seed, 200, most_gap=most_gap), set(), (100, "")
    for chosen in runs:
        owner = Owner(committed)
        owner.deliver(log.records[: log.random.randint(1, 200)])
        assert set(owner.skipped) <= finished
        handled = {(task.offset, generation) for task, generation in owner.tasks}
        assert handled.isdisjoint(finished)
        finished |= owner.finish(chosen)
        if owner.offsets.partition(T0).ledger is not None:
            committed = owner.commit()


TIMESTAMPS = {
    "newer": lambda index, _random: NOW + 10_000 + index,
    "older": lambda index, _random: NOW - 10_000 + 3 * index,
    "as old": lambda _index, random: NOW + random.randrange(2000),
    "all of one time": lambda _index, _random: NOW + 500,
}


@settings(max_examples=settings().max_examples * 3 // 5)
@given(seed=st.integers(0, 10**6), place=st.integers(0, 199), runs=st.lists(CHOSEN, min_size=1, max_size=3))
@pytest.mark.parametrize("timestamps", TIMESTAMPS)
@pytest.mark.parametrize("most_gap", [1, 3])
def test_records_that_took_the_place_of_finished_ones_are_handled(timestamps, most_gap, seed, place, runs):
    """The log has lost its end in an unclean election, and has new records there, with any begin and any clock."""
    log, committed = Log(seed, 200, most_gap=most_gap), (100, "")
    for chosen in runs:
        owner = Owner(committed)
        owner.deliver(log.records)
        owner.finish({0} ^ chosen)
        committed = owner.commit()
    log.replace_from(place, lambda index: TIMESTAMPS[timestamps](index, log.random))
    owner = Owner(committed)
    owner.deliver(log.records)
    wrong = [offset for offset, generation in owner.skipped if generation]
    # Two records with the same time stamp, to the millisecond, can't be distinguished.
    assert len(wrong) <= (1 if timestamps in {"newer", "older"} else 5)
    if timestamps == "newer":
        assert not wrong


@pytest.mark.parametrize("count", [400, 10_000])
@pytest.mark.parametrize("first", [0.001, 0.5, 0.99])
@pytest.mark.parametrize("are", ["older", "newer"])
def test_records_in_the_place_of_many_are_noticed_soon(count, first, are):
    """Newer records at once. Of older ones at most one in 256 is skipped: a map has that many time stamps."""
    log = Log(1, count, most_gap=1)
    before = Owner()
    before.deliver(log.records)
    before.finish(set(range(1, count)))
    committed = before.commit()
    begin = NOW + 10_000_000 * (1 if are == "newer" else -1)
    log.replace_from(int(first * count), lambda index: begin + index)
    after = Owner(committed)
    after.deliver(log.records)
    wrong = [offset for offset, generation in after.skipped if generation]
    assert len(wrong) <= (0 if are == "newer" else count // 256 + 1)
    assert len(after.skipped) - len(wrong) >= int(first * count) - 2
    assert len(committed[1]) < 1200


def test_what_is_not_believed_is_not_told_again():
    """A member that has noticed a different log commits metadata about the records that it has seen only."""
    log = Log(1, 100, most_gap=1)
    before = Owner()
    before.deliver(log.records)
    before.finish(set(range(1, 100)))
    committed = before.commit()
    log.replace_from(50, lambda index: NOW + 10_000 + index)
    after = Owner(committed)
    after.deliver(log.records[:60])
    after.finish({5})
    offset, metadata = after.commit()
    listed = set(OffsetMap.parse(metadata, offset).finished_from(0))
    # The stuck record, and the ten after the loss, of which one has finished.
    assert listed == {*range(101, 150), 154}


def test_a_commit_that_may_have_arrived_is_not_taken_back():
    """The answer was lost; since a record of an earlier epoch has finished, the computed offset would be one less."""

    async def main():
        committer = KafkaBatchCommitter(commit_metadata=True)
        committer.spawn()
        consumer = Forgetful(T0)
        committer.watch(consumer).is_group_managed = True
        early = [Admission(T0, offset, timestamp=offset) for offset in range(4)]
        for task in early:
            committer.admit(consumer, task)
        await committer.hold(consumer)
        committer.end_epoch(consumer)
        committer.release(consumer)
        again = Admission(T0, 0, timestamp=0)
        committer.admit(consumer, again)
        consumer.answers = False
        committer.complete(again)
        await asyncio.sleep(3)
        assert consumer.committed == {T0: 1}
        early[3].is_finished = True
        await asyncio.sleep(3)
        consumer.answers = True
        await asyncio.sleep(10)
        assert all(commit == {T0: 1} for commit in consumer.commits)
        await committer.close()

    run_virtual(main())


class Forgetful(ScriptedConsumer):
    """A consumer whose commits arrive, and may not be answered."""

    answers = True

    @override
    async def commit(self, offsets):
        await super().commit({key: value[0] if isinstance(value, tuple) else value for key, value in offsets.items()})
        if not self.answers:
            await asyncio.Event().wait()


LARGE = {
    "10,000 records that lie 100 apart": lambda _random: OffsetMap.of(0, 1, admitted=2**20, unfinished=[0]),
    "every other one": lambda _random: OffsetMap(0, 1, b"\xaa" * 2**17),
    "a few": lambda random: OffsetMap.of(
        0, 1, admitted=2**20, unfinished=sorted({0} | {random.randrange(2**20) for _ in range(10_000)})
    ),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_million_offsets_in_each_of_many_partitions_do_not_block_the_loop(kind):
    """Maps of any writer, with any frequency of other commits."""
    partitions = [TopicPartition("orders", number) for number in range(24)]
    metadata = LARGE[kind](random.Random(1)).dump()  # noqa: S311 - to be repeated
    assert len(metadata) <= 4096
    longest = 0.0

    async def watch():
        nonlocal longest
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)

    async def main():
        committer = KafkaBatchCommitter(commit_metadata=True, commit_batch_timeout_sec=0.05)
        committer.spawn()
        consumer = ScriptedConsumer(*partitions)
        for key in partitions:
            committer.watch(consumer).partition(key).restored = OffsetMap.parse(metadata, 0)
            committer.admit(consumer, Admission(key, 0, timestamp=1))
        watching = asyncio.get_running_loop().create_task(watch())
        began = time.thread_time()
        until = asyncio.get_running_loop().time() + 2
        offset = 0
        while asyncio.get_running_loop().time() < until:
            offset += 1
            for key in partitions:
                task = Admission(key, offset, timestamp=1)
                if committer.admit(consumer, task) is None or offset % 2:
                    committer.complete(task)
            await asyncio.sleep(0.05)
        watching.cancel()
        await committer.flush(consumer, timeout_sec=5)
        spent = time.thread_time() - began
        (offset, listed) = next(value for value in consumer.commits[-1].values() if isinstance(value, tuple))
        assert OffsetMap.parse(listed, offset).size > 10_000
        await committer.close()
        return spent

    # A full collection of all that the test run has imported may take longer than what is measured.
    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()
    assert longest < 0.05


def test_what_finished_last_is_told_although_nothing_else_finishes():
    """While making maps takes long, commits repeat earlier ones; the last commit has a new one."""
    partitions = [TopicPartition("orders", number) for number in range(24)]
    metadata = LARGE["every other one"](None).dump()

    async def main():
        committer = KafkaBatchCommitter(commit_metadata=True)
        committer.spawn()
        consumer = ScriptedConsumer(*partitions)
        tasks = []
        for key in partitions:
            committer.watch(consumer).partition(key).restored = OffsetMap.parse(metadata, 0)
            tasks += [Admission(key, offset, timestamp=1) for offset in range(0, 40, 2)]
        for task in tasks:
            committer.admit(consumer, task)
        for task in tasks:
            if task.offset:
                committer.complete(task)
                await asyncio.sleep(0.01)
        commits = len(consumer.commits)
        await asyncio.sleep(20)
        assert 1 < commits < len(consumer.commits) < commits + 5
        for key in partitions:
            _, listed = consumer.committed_with_metadata(key)
            read = OffsetMap.parse(listed, 0)
            assert all(offset in read for offset in range(2, 40, 2))
        await committer.close()

    run_virtual(main())
