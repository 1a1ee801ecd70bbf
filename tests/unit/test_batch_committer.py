"""The committer in virtual time: when it commits, which offsets, and what each kind of failure does (I10, I11, I12)."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    RequestTimedOutError,
)

from faststream_concurrent_kafka import CommitterIsDeadError, KafkaBatchCommitter, KafkaCommitTask
from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.scripted import ScriptedConsumer


T0, T1 = TopicPartition("orders", 0), TopicPartition("orders", 1)


def in_virtual_time(test: Callable[[KafkaBatchCommitter, ScriptedConsumer], Awaitable[None]]) -> Callable[[], None]:
    """Give the test a spawned committer (batches of 10, 1 s, red after 15 s) and a consumer, on a virtual clock."""

    async def main() -> None:
        committer = KafkaBatchCommitter(commit_batch_size=10, commit_batch_timeout_sec=1.0)
        consumer = ScriptedConsumer(T0, T1)
        committer.spawn()
        await test(committer, consumer)
        await committer.close()

    def run() -> None:
        run_virtual(main())

    run.__doc__ = test.__doc__
    return run


def send(committer, consumer, *offsets, partition=T0):
    admissions = [Admission(partition, offset) for offset in offsets]
    for admission in admissions:
        committer.admit(consumer, admission)
    return admissions


def complete(committer, tasks):
    for task in tasks:
        committer.complete(task)


@in_virtual_time
async def test_commits_when_the_batch_is_full(committer, consumer):
    """Ten finished records are one request, with every dirty partition in it, before the timeout."""
    complete(committer, send(committer, consumer, *range(6)) + send(committer, consumer, *range(4), partition=T1))
    await asyncio.sleep(0.5)
    assert consumer.commits == [{T0: 6, T1: 4}]


@in_virtual_time
async def test_commits_when_the_first_finished_record_has_waited_long_enough(committer, consumer):
    """One second after the first of them, not after the last."""
    tasks = send(committer, consumer, 0, 1, 2)
    committer.complete(tasks[0])
    await asyncio.sleep(0.9)
    committer.complete(tasks[1])
    assert not consumer.commits
    await asyncio.sleep(0.2)
    assert consumer.commits == [{T0: 2}]


@in_virtual_time
async def test_never_commits_past_an_unfinished_record(committer, consumer):
    """Records that finish behind it are committed together with it, in one step."""
    tasks = send(committer, consumer, *range(100))
    complete(committer, tasks[:3] + tasks[4:])
    await asyncio.sleep(5)
    assert consumer.committed == {T0: 3}
    committer.complete(tasks[3])
    await asyncio.sleep(1.1)
    assert consumer.committed == {T0: 100}


@in_virtual_time
async def test_one_request_is_in_flight_and_the_next_takes_what_finished_meanwhile(committer, consumer):
    """A slow broker gets fewer and larger requests, never two at once."""
    consumer.hold = asyncio.Event()
    tasks = send(committer, consumer, *range(50))
    complete(committer, tasks[:10])
    await asyncio.sleep(0.1)
    complete(committer, tasks[10:30])
    await asyncio.sleep(1)
    assert (consumer.in_flight, consumer.commits) == (1, [])
    consumer.hold.set()
    await asyncio.sleep(1.1)
    assert consumer.commits == [{T0: 10}, {T0: 30}]
    assert consumer.most_in_flight == 1


@pytest.mark.parametrize(
    "error",
    [
        KafkaConnectionError(),
        RequestTimedOutError(),
        GroupAuthorizationFailedError(),
        KafkaError(),
        OSError("unreachable"),
        TimeoutError(),
        asyncio.CancelledError(),
    ],
    ids=repr,
)
def test_a_failed_commit_is_tried_again_with_the_frontier_of_that_moment(error):
    """No error that a broker can cause ends the loop; the next request has the new offsets."""

    @in_virtual_time
    async def scenario(committer, consumer):
        consumer.errors = [error, error]
        tasks = send(committer, consumer, *range(30))
        complete(committer, tasks[:10])
        await asyncio.sleep(0.05)
        complete(committer, tasks[10:15])
        await asyncio.sleep(5)
        assert consumer.commits == [{T0: 15}]
        assert committer.is_healthy

    scenario()


@in_virtual_time
async def test_a_commit_that_is_never_answered_is_bounded(committer, consumer):
    """aiokafka retries for ever, so an attempt is cut off after 5 s; health turns red, and green after a success."""
    consumer.hold = asyncio.Event()
    complete(committer, send(committer, consumer, *range(10)))
    await asyncio.sleep(14)
    assert committer.is_healthy
    await asyncio.sleep(2)
    assert not committer.is_healthy
    assert "no commit has succeeded for 16 s: TimeoutError()" in committer.problems()
    consumer.hold.set()
    await asyncio.sleep(6)
    assert consumer.committed == {T0: 10}
    assert committer.is_healthy
    assert consumer.most_in_flight == 1


@pytest.mark.parametrize("error", [CommitFailedError(), IllegalStateError(), ConsumerStoppedError()], ids=repr)
def test_lost_ownership_holds_commits_until_partitions_are_assigned(error):
    """Another attempt before the rejoin would only cause another rejoin."""

    @in_virtual_time
    async def scenario(committer, consumer):
        committer.watch(consumer).is_group_managed = True
        consumer.errors = [error]
        tasks = send(committer, consumer, *range(20))
        complete(committer, tasks[:10])
        await asyncio.sleep(1)
        complete(committer, tasks[10:])
        await asyncio.sleep(60)
        assert not consumer.commits
        committer.end_epoch(consumer)
        committer.release(consumer)
        complete(committer, send(committer, consumer, 5, 6))
        await asyncio.sleep(2)
        assert consumer.commits == [{T0: 7}]

    scenario()


@in_virtual_time
async def test_with_manual_assignment_lost_ownership_is_tried_again(committer, consumer):
    """Without a group, no rebalance would ever release the commits."""
    consumer.errors = [CommitFailedError()]
    complete(committer, send(committer, consumer, *range(10)))
    await asyncio.sleep(1)
    assert consumer.commits == [{T0: 10}]


@in_virtual_time
async def test_partitions_that_are_not_assigned_are_left_out(committer, consumer):
    """aiokafka refuses a whole request with one unassigned partition."""
    complete(committer, send(committer, consumer, *range(5)) + send(committer, consumer, *range(5), partition=T1))
    consumer.assigned = {T1}
    await asyncio.sleep(2)
    assert consumer.commits == [{T1: 5}]


@in_virtual_time
async def test_an_error_that_no_broker_can_cause_ends_it_loudly(committer, consumer):
    """Health is red, and callers get an error with the cause."""
    bug = TypeError("a bug")
    consumer.errors = [bug]
    complete(committer, send(committer, consumer, *range(10)))
    await asyncio.sleep(0.1)
    assert not committer.is_alive
    assert committer.problems() == ["the committer has died: TypeError('a bug')"]
    with pytest.raises(CommitterIsDeadError) as raised:
        send(committer, consumer, 10)
    assert raised.value.__cause__ is bug
    with pytest.raises(CommitterIsDeadError):
        await committer.commit_all()


def test_a_committer_that_was_never_spawned_says_so():
    """Sending a task to it raises an error."""

    async def main():
        committer = KafkaBatchCommitter()
        assert committer.problems() == ["the committer is not running"]
        with pytest.raises(CommitterIsDeadError):
            send(committer, ScriptedConsumer(T0), 0)
        await committer.close()

    run_virtual(main())


@in_virtual_time
async def test_hold_cancels_the_request_in_flight_and_lets_none_start(committer, consumer):
    """No commit may be under way while the group rebalances."""
    consumer.hold = asyncio.Event()
    tasks = send(committer, consumer, *range(20))
    complete(committer, tasks[:10])
    await asyncio.sleep(0.1)
    assert consumer.in_flight == 1
    await committer.hold(consumer)
    assert consumer.in_flight == 0
    consumer.hold = None
    complete(committer, tasks[10:])
    await asyncio.sleep(10)
    assert not consumer.commits
    assert await committer.flush(consumer, timeout_sec=1)
    assert consumer.commits == [{T0: 20}]


@in_virtual_time
async def test_what_finished_while_commits_were_held_is_made_up_for(committer, consumer):
    """Records may be delivered before commits are released, and fill a batch: the release makes a commit due."""
    await committer.hold(consumer)
    complete(committer, send(committer, consumer, *range(10)))
    await asyncio.sleep(10)
    assert not consumer.commits
    committer.release(consumer)
    await asyncio.sleep(0.1)
    assert consumer.commits == [{T0: 10}]


@in_virtual_time
async def test_what_still_runs_when_an_epoch_ends_commits_nothing(committer, consumer):
    """Another member owns the partition then, or its records are delivered again."""
    tasks = send(committer, consumer, *range(10))
    complete(committer, tasks[:5])
    await committer.hold(consumer)
    await committer.flush(consumer, timeout_sec=1)
    committer.end_epoch(consumer)
    committer.release(consumer)
    complete(committer, tasks[5:])
    await asyncio.sleep(5)
    assert consumer.commits == [{T0: 5}]


@in_virtual_time
async def test_a_position_that_goes_back_begins_an_epoch(committer, consumer):
    """A seek back delivers records again, which pin the frontier even if they had finished."""
    old = send(committer, consumer, *range(20))
    complete(committer, old[:10])
    await asyncio.sleep(2)
    again = send(committer, consumer, 3, 4)
    complete(committer, [*old[10:], again[1]])
    await asyncio.sleep(2)
    assert consumer.commits == [{T0: 10}]
    committer.complete(again[0])
    await asyncio.sleep(2)
    assert consumer.commits == [{T0: 10}, {T0: 5}]


@in_virtual_time
async def test_a_position_that_moves_over_records_that_run_is_not_committed_past_them(committer, consumer):
    """After a crash of this consumer, the next owner has to get the running records."""
    old = send(committer, consumer, *range(10))
    complete(committer, old[1:])
    again = send(committer, consumer, 4)
    complete(committer, again)
    await asyncio.sleep(2)
    assert not consumer.commits
    committer.complete(old[0])
    await asyncio.sleep(2)
    assert consumer.commits == [{T0: 5}]


@pytest.mark.parametrize("how", ["result", "exception", "cancelled"])
def test_a_task_may_come_with_the_future_that_completes_it(how):
    """A result or an exception completes the record, a cancellation leaves it unfinished."""

    @in_virtual_time
    async def scenario(committer, consumer):
        future = asyncio.get_running_loop().create_future()
        await committer.send_task(KafkaCommitTask(asyncio_task=future, topic_partition=T0, offset=0, consumer=consumer))
        await asyncio.sleep(2)
        assert not consumer.commits
        if how == "result":
            future.set_result(None)
        elif how == "exception":
            future.set_exception(ValueError())
        else:
            future.cancel()
        await asyncio.sleep(2)
        assert consumer.commits == ([] if how == "cancelled" else [{T0: 1}])

    scenario()


@in_virtual_time
async def test_commit_all_and_close_commit_what_is_finished(committer, consumer):
    """For every consumer, and without waiting for batch or timer."""
    other = ScriptedConsumer(T1)
    complete(committer, send(committer, consumer, 0, 1) + send(committer, other, 7, partition=T1))
    await committer.commit_all()
    assert (consumer.commits, other.commits) == ([{T0: 2}], [{T1: 8}])
    complete(committer, send(committer, consumer, 2))
    await committer.close()
    assert consumer.committed == {T0: 3}
    assert not committer.is_alive


@in_virtual_time
async def test_one_consumer_that_hangs_does_not_hold_up_another(committer, consumer):
    """Two brokers: one of them is down."""
    other = ScriptedConsumer(T1)
    consumer.hold = asyncio.Event()
    complete(committer, send(committer, consumer, *range(10)))
    await asyncio.sleep(0.1)
    complete(committer, send(committer, other, 0, partition=T1))
    await asyncio.sleep(1.1)
    assert other.commits == [{T1: 1}]
    consumer.hold.set()


@in_virtual_time
async def test_no_request_of_another_flush_is_under_way_after_a_flush(committer, consumer):
    """A stop has more time for its last commit than a rebalance, which must not leave that to aiokafka's retries."""
    complete(committer, send(committer, consumer, 0))
    consumer.hold = asyncio.Event()
    of_the_stop = asyncio.create_task(committer.flush(consumer, timeout_sec=10))
    await asyncio.sleep(1)
    assert consumer.in_flight == 1
    assert not await committer.flush(consumer, timeout_sec=2)
    assert consumer.in_flight == 0
    await of_the_stop


def test_a_flush_can_be_cancelled_at_every_await():
    """Wherever it is cancelled, no uncommitted offset counts as committed, and the next flush commits it."""

    async def main():
        for step in range(12):
            committer = KafkaBatchCommitter(commit_batch_size=10)
            consumer = ScriptedConsumer(T0)
            committer.spawn()
            consumer.hold = asyncio.Event()
            tasks = send(committer, consumer, *range(30))
            complete(committer, tasks[:10])
            await asyncio.sleep(0.1)
            flush = asyncio.get_running_loop().create_task(committer.flush(consumer, timeout_sec=3))
            for _ in range(step):
                await asyncio.sleep(0)
            flush.cancel()
            await asyncio.wait({flush})
            consumer.hold.set()
            complete(committer, tasks[10:])
            await asyncio.sleep(2)
            assert consumer.committed == {T0: 30}, step
            assert consumer.most_in_flight == 1
            await committer.close()

    run_virtual(main())
