"""For how long commits of a consumer have been failing: which events end that, and which do not."""

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, KafkaConnectionError
from typing_extensions import override

from faststream_concurrent_kafka import KafkaBatchCommitter
from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._commit.clock import CommitClock
from faststream_concurrent_kafka._commit.consumer import ConsumerOffsets
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.scripted import ScriptedConsumer


T0, T1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
LIMIT_SEC = 15.0


def failed(*, at=0.0, **offsets):
    """Return the offsets of a consumer of partitions `a` to `c`, after a commit has failed that began at `at`."""
    state = ConsumerOffsets(ScriptedConsumer(*map(place, "abc")))
    state.clock.begin(at)
    state.failed({place(name): offset for name, offset in offsets.items()}, "refused", at + 1)
    state.clock.end()
    return state


def place(name):
    return TopicPartition(name, 0)


def test_it_runs_from_the_beginning_of_the_first_attempt():
    """It also runs while the attempt is unanswered; a cancelled attempt does not count."""
    clock = CommitClock()
    clock.begin(10)
    assert clock.age_sec(14, is_held=False) == 4
    clock.end()
    assert clock.age_sec(15, is_held=False) == 0
    clock.begin(20)
    clock.fail("refused", 25)
    clock.end()
    clock.begin(30)
    assert (clock.age_sec(31, is_held=False), clock.error, clock.failures) == (11, "refused", 1)
    clock.forget()
    clock.end()
    assert (clock.age_sec(32, is_held=False), clock.error, clock.failures) == (0, "", 0)


def test_old_failures_count_again_with_the_next_one():
    """Two attempts may be ten minutes apart: in between it is not known whether commits still fail."""
    clock = failed(a=5).clock
    assert clock.age_sec(10, is_held=False) == 10
    assert clock.age_sec(600, is_held=False) == 0
    assert clock.age_sec(600, is_held=True) == 600
    clock.begin(600)
    assert clock.age_sec(601, is_held=False) == 0
    clock.fail("refused", 602)
    assert clock.age_sec(602, is_held=False) == 602


def test_it_is_over_when_others_have_the_partitions_or_have_committed_them():
    """Only when that is true of all failed partitions."""
    state = failed(a=5, b=7)
    state.consumer.assigned = {place("b"), place("c")}
    state.assigned()
    assert state.failing_sec(5) == 5
    state.partition(place("b")).begin(6, is_committed=True)
    state.partition(place("c")).begin(100, is_committed=True)
    assert state.failing_sec(5) == 5
    state.end_epoch()
    state.partition(place("b")).begin(7, is_committed=True)
    assert state.failing_sec(5) == 0
    state = failed(a=5)
    state.consumer.assigned = {place("b")}
    state.assigned()
    assert (state.failing_sec(5), state.clock.error) == (0, "")


@pytest.mark.parametrize("is_over", [False, True])
def test_failures_that_are_over_do_not_count_with_the_next_one(is_over):
    """After other members have committed, a failure ten minutes later begins a new series."""
    state = failed(a=5)
    if is_over:
        state.partition(place("a")).begin(5, is_committed=True)
    state.clock.begin(600)
    state.failed({place("b"): 1}, "refused", 601)
    assert state.failing_sec(601) == (1 if is_over else 601)
    assert state.clock.failures == (1 if is_over else 2)
    assert state.succeeded() == "refused"
    state.clock.end()
    assert state.failing_sec(602) == 0


class Refusing(ScriptedConsumer):
    """Fails every commit."""

    error: BaseException | None = CommitFailedError("the group has already rebalanced")

    @override
    async def commit(self, offsets):
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        await super().commit(offsets)


def play(scenario, *, error=Refusing.error):
    async def main():
        committer = KafkaBatchCommitter(commit_failure_timeout_sec=LIMIT_SEC)
        committer.spawn()
        consumer = Refusing(T0, T1)
        consumer.error = error
        committer.watch(consumer).is_group_managed = True
        await scenario(committer, consumer)
        await committer.close()

    run_virtual(main())


async def rebalance(committer, consumer, *, to=(T0, T1)):
    await committer.hold(consumer)
    await committer.flush(consumer, timeout_sec=1)
    committer.end_epoch(consumer)
    consumer.assigned = set(to)
    await asyncio.sleep(0.5)
    committer.release(consumer)


def finish(committer, consumer, *offsets, partition=T0):
    for offset in offsets:
        task = Admission(partition, offset)
        committer.admit(consumer, task)
        committer.complete(task)


@pytest.mark.parametrize("error", [CommitFailedError("rebalanced"), KafkaConnectionError()], ids=repr)
@pytest.mark.parametrize("every_sec", [1, 8, 14])
def test_an_endless_rebalance_in_which_no_commit_succeeds_is_red(every_sec, error):
    """Each assignment delivers the same records again, and no commit ever succeeds."""

    async def scenario(committer, consumer):
        red = []
        for _ in range(20):
            finish(committer, consumer, *range(100))
            for _ in range(every_sec * 2):
                await asyncio.sleep(0.5)
                red.append(not committer.is_healthy)
            await rebalance(committer, consumer)
        seconds = [index / 2 for index, is_red in enumerate(red) if not is_red]
        assert max(seconds) <= LIMIT_SEC + 5

    play(scenario, error=error)


def test_one_success_makes_it_green():
    """Of any partition."""

    async def scenario(committer, consumer):
        for _ in range(4):
            finish(committer, consumer, *range(10))
            await asyncio.sleep(5)
            await rebalance(committer, consumer)
        finish(committer, consumer, *range(10))
        await asyncio.sleep(1.5)
        assert not committer.is_healthy
        consumer.error = None
        await rebalance(committer, consumer)
        assert committer.is_healthy
        assert consumer.committed == {T0: 10}

    play(scenario)


@pytest.mark.parametrize("leaves", ["the partition", "what was to be committed"])
def test_what_others_have_taken_over_is_green(leaves):
    """Others own the partition; or it comes back after others have committed its offsets."""

    async def scenario(committer, consumer):
        for _ in range(4):
            finish(committer, consumer, *range(10))
            await asyncio.sleep(5)
            await rebalance(committer, consumer)
        assert not committer.is_healthy
        if leaves == "the partition":
            await rebalance(committer, consumer, to=[T1])
        else:
            await rebalance(committer, consumer)
            committer.admit(consumer, Admission(T0, 10))
        assert committer.is_healthy

    play(scenario)
