"""The window of a partition in virtual time: when it is paused and resumed, and when a commit is due for it (I24)."""

import asyncio

import pytest
from aiokafka import TopicPartition
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from faststream_concurrent_kafka import KafkaBatchCommitter
from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._subscriber.window import Window
from faststream_concurrent_kafka._upstream.pauses import Pauses, Reason
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.scripted import ScriptedConsumer


T0 = TopicPartition("orders", 0)


class Pausable(ScriptedConsumer):
    """A consumer of one partition with endless records, which delivers unless it is paused."""

    def __init__(self, size):
        super().__init__(T0)
        # No batch is ever full, and the timer never fires: every commit is due because of the window.
        self.committer = KafkaBatchCommitter(commit_batch_size=10**9, commit_batch_timeout_sec=10.0**6)
        self.committer.spawn()
        self.is_paused = False
        self.resumes = 0
        self.pauses = Pauses(self)
        self.window = Window(size, self.pauses)
        self.committer.watch(self).on_ack = self.window.acknowledged
        self.unfinished: dict[int, Admission] = {}
        self.next_offset = 0
        self.answer_sec = 0.001

    def paused(self):
        return {T0} if self.is_paused else set()

    def pause(self, *partitions):
        self.is_paused = self.is_paused or bool(partitions)

    def resume(self, *partitions):
        self.resumes += len(partitions)
        self.is_paused = self.is_paused and not partitions

    @override
    async def commit(self, offsets):
        await asyncio.sleep(self.answer_sec)
        await super().commit(offsets)

    def fetch(self, most, *, gap=0):
        """Deliver records as a subscriber does; return their number."""
        for number in range(most):
            if self.is_paused:
                return number
            task = self.unfinished[self.next_offset] = Admission(T0, self.next_offset)
            self.next_offset += 1 + gap
            self.committer.admit(self, task)
            if task.ledger.window >= self.window.size:
                self.window.pause(T0, task.ledger)
                self.committer.make_room(task)
        return most

    def finish(self, *offsets):
        for offset in offsets:
            self.committer.complete(self.unfinished.pop(offset))

    @property
    def uncommitted(self):
        ((_, _, ledger),) = self.committer.partitions()
        return ledger.window


def play(scenario, size):
    async def main():
        consumer = Pausable(size)
        await scenario(consumer)
        await consumer.committer.close()

    run_virtual(main())


SIZES = [1, 2, 3, 7, 8, 9, 20, 100, 1000]


@pytest.mark.parametrize("size", SIZES)
def test_a_full_window_makes_a_commit_due_at_once(size):
    """Independent of batch size and timer."""

    async def scenario(consumer):
        assert consumer.fetch(10 * size) == size
        consumer.finish(*range(1, size))
        await asyncio.sleep(100)
        assert not consumer.commits
        consumer.finish(0)
        await asyncio.sleep(0.01)
        assert not consumer.is_paused
        assert consumer.committed == {T0: size}

    play(scenario, size)


@pytest.mark.parametrize("size", [2, 3, 20, 100, 1000])
@pytest.mark.parametrize("pinned", [1, 0.5, 0.9])
def test_with_a_stuck_record_the_window_is_used_up_to_its_end(size, pinned):
    """The partition is resumed for the last free places, since no more become free while the record is stuck."""
    stuck = size - max(1, int(pinned * (size - 1)))

    async def scenario(consumer):
        consumer.fetch(10 * size)
        consumer.finish(*(offset for offset in range(size) if offset != stuck))
        await asyncio.sleep(1)
        assert not consumer.is_paused
        assert consumer.committed == {T0: stuck}
        assert consumer.fetch(10 * size) == stuck
        await asyncio.sleep(1)
        assert consumer.uncommitted == size
        assert consumer.is_paused
        consumer.finish(stuck)
        await asyncio.sleep(1)
        assert not consumer.is_paused

    play(scenario, size)


def test_what_finished_before_the_window_was_full_is_committed_when_it_is():
    """No record finishes after that, because the last one is stuck."""

    async def scenario(consumer):
        consumer.fetch(15)
        consumer.finish(*range(10))
        await asyncio.sleep(10)
        assert not consumer.commits
        consumer.fetch(10)
        await asyncio.sleep(1)
        assert consumer.committed == {T0: 10}
        assert not consumer.is_paused

    play(scenario, 20)


def test_small_steps_of_a_full_window_share_their_commits():
    """A thousand records of one key finish one after the other, without a thousand commits and refetches."""

    async def scenario(consumer):
        consumer.fetch(10_000)
        for offset in range(1000):
            consumer.finish(offset)
            consumer.fetch(100)
            await asyncio.sleep(0.001)
        assert 1 < len(consumer.commits) < 60
        assert consumer.resumes <= len(consumer.commits)
        await asyncio.sleep(0.1)
        assert consumer.committed == {T0: 1000}

    play(scenario, 1000)


def test_an_answer_for_an_epoch_that_is_over_resumes_nothing():
    """The position went back while the commit was in flight, and the new epoch's window is full."""

    async def scenario(consumer):
        consumer.fetch(5)
        consumer.finish(*range(4))
        consumer.hold = asyncio.Event()
        flush = asyncio.get_running_loop().create_task(consumer.committer.flush(consumer, timeout_sec=5))
        await asyncio.sleep(0.1)
        assert consumer.in_flight == 1
        consumer.next_offset = 0
        consumer.unfinished.clear()
        assert consumer.fetch(100) == 10
        consumer.hold.set()
        await flush
        assert consumer.commits == [{T0: 4}]
        assert (consumer.is_paused, consumer.uncommitted) == (True, 10)

    play(scenario, 10)


@pytest.mark.parametrize("is_full", [False, True])
def test_an_acknowledgement_does_not_resume_a_halted_partition(is_full):
    """With any number of free places, and whether or not it was paused for its window before."""

    async def scenario(consumer):
        consumer.fetch(10 if is_full else 9)
        consumer.unfinished[8].ledger.stop_at(8)
        consumer.pauses.add(Reason.HALTED, T0)
        consumer.finish(*range(8))
        await consumer.committer.flush(consumer, timeout_sec=1)
        assert consumer.committed == {T0: 8}
        assert consumer.is_paused

    play(scenario, 10)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("fetch"), st.integers(1, 30), st.integers(0, 3)),
        st.tuples(st.just("finish"), st.integers(0, 30), st.integers(1, 30)),
        st.tuples(st.just("sleep"), st.sampled_from([0.0005, 0.01, 0.5])),
        st.tuples(st.just("answers take"), st.sampled_from([0.0, 0.005, 0.3])),
    ),
    max_size=60,
)


@settings(max_examples=2 * settings().max_examples)
@given(steps=STEPS, size=st.one_of(st.integers(1, 25), st.just(64)), stuck=st.sets(st.integers(0, 60)))
@example(steps=[("fetch", 30, 0), ("finish", 0, 30)], size=20, stuck={6})
def test_it_is_paused_only_while_it_is_full(steps, size, stuck):
    """For any stuck records: in the end no free place is left unused, and the window is never exceeded."""

    async def scenario(consumer):
        def finish(first, count):
            for offset in [each for each in consumer.unfinished if each not in stuck][first : first + count]:
                consumer.finish(offset)

        for action, *arguments in steps:
            match action, arguments:
                case "fetch", (most, gap):
                    consumer.fetch(most, gap=gap)
                    assert not consumer.committer.partitions() or consumer.uncommitted <= size
                case "finish", (first, count):
                    finish(first, count)
                case "sleep", (seconds,):
                    await asyncio.sleep(seconds)
                case "answers take", (seconds,):
                    consumer.answer_sec = seconds
        for _ in range(4):
            consumer.fetch(2 * size)
            finish(0, 10**9)
            await asyncio.sleep(2)
            # It is resumed, or the stuck record and those behind it fill the window.
            assert not consumer.is_paused or consumer.uncommitted == size

    play(scenario, size)
