"""Records that fail, in virtual time: cancellation at every await, draining, rebalances (I18, I20)."""

import asyncio
from collections import Counter

import pytest
from faststream.exceptions import NackMessage

from faststream_concurrent_kafka import (
    DeadLetter,
    FailurePolicy,
)
from faststream_concurrent_kafka._subscriber.rebalance import ConcurrentRebalanceListener
from tests.unit.world import T0, play


DEAD = DeadLetter("dead")
# A nack with a delay has no jitter: the wait is exact.
AGAIN_IN_A_MINUTE = NackMessage(delay=60)


async def quick(_raw):
    pass


async def ask_again(_raw):
    raise AGAIN_IN_A_MINUTE


def test_who_waits_for_another_attempt_or_a_dead_letter_holds_no_slot_but_its_lane():
    """Records of other keys get the slot; the records of its own key wait."""
    begun: list[str] = []

    def named(name, error=None):
        async def process(_raw):
            begun.append(name)
            await asyncio.sleep(1)
            if error is not None:
                raise error

        return process

    async def scenario(world):
        world.source.publishing_sec = 60
        world.deliver(named("asks again", AGAIN_IN_A_MINUTE), key=b"a")
        world.deliver(named("dead", PermissionError()), key=b"b")
        for key in (b"a", b"b", b"c", b"d", None):
            world.deliver(named(f"then {key}"), key=key)
        await asyncio.sleep(10)
        assert begun == ["asks again", "dead", "then b'c'", "then b'd'", "then None"]
        assert (len(world.handler.records), world.handler.records.waiting, world.handler.records.retrying) == (4, 4, 1)
        assert world.handler.slots.reserved == 0
        assert await world.committed() == 0

    policy = FailurePolicy(max_attempts=3, never_retry=PermissionError, then=DEAD)
    play(scenario, on_failure=policy, concurrency_limit=1, ordering="key")


@pytest.mark.parametrize("who", ["the handler", "other code"])
@pytest.mark.parametrize("where", ["its slot", "its handler", "its next attempt", "its slot again", "its dead letter"])
def test_a_record_that_is_cancelled_is_left_undone_and_no_record_overtakes_it(where, who):
    """At each wait: it is settled once, and gives up slot and key; a cancellation by other code halts its partition."""
    begun: list[int] = []
    script = {
        "its slot": [],
        "its handler": [100.0],
        "its next attempt": [AGAIN_IN_A_MINUTE],
        "its slot again": [NackMessage(delay=1)],
        "its dead letter": [PermissionError()],
    }[where]

    async def scenario(world):
        async def block(_raw):
            await asyncio.sleep(20)

        async def process(raw):
            begun.append(raw.offset)
            step = script.pop(0)
            if isinstance(step, Exception):
                raise step
            await asyncio.sleep(step)

        async def note(raw):
            begun.append(raw.offset)

        world.source.publishing_sec = 60
        if where == "its slot":
            world.deliver(block, partition=1)
        record = world.deliver(process, key=b"a")
        successors = [world.deliver(note, key=b"a") for _ in range(3)]
        await asyncio.sleep(0.5)
        if where == "its slot again":
            world.deliver(block, partition=1)
            await asyncio.sleep(1)
        assert begun == ([] if where == "its slot" else [0])
        assert not any(successor.task for successor in successors)
        if who == "the handler":
            assert await world.handler.runner.cancel(lambda each: each is record) == [record]
        else:
            record.task.cancel()
        await asyncio.wait({record.task})
        assert record.task.exception() is None
        assert len(world.source.halts) == (who == "other code")
        await world.until(lambda: len(world.handler.records) == 0)
        assert world.source.in_flight == world.handler.slots.reserved == 0
        assert len(begun) <= 1
        assert not world.source.dead_letters
        assert await world.committed() == 0
        # Later records of its key are not started in this assignment either; other partitions go on.
        world.deliver(note, key=b"a")
        world.deliver(quick, partition=2, key=b"a")
        await asyncio.sleep(0.01)
        assert len(world.handler.records) == 0
        assert len(begun) <= 1
        assert await world.committed(2) == 1

    policy = FailurePolicy(max_attempts=3, never_retry=PermissionError, then=DEAD)
    play(scenario, on_failure=policy, concurrency_limit=1, ordering="key")


def test_a_record_that_waits_in_its_lane_can_be_cancelled():
    """It never gets a task; the record before it ends as usual, and the next one does not overtake it."""
    begun: list[int] = []

    async def process(raw):
        begun.append(raw.offset)
        await asyncio.sleep(2)

    async def scenario(world):
        first, second, third = [world.deliver(process, key=b"a") for _ in range(3)]
        await asyncio.sleep(1)
        assert await world.handler.runner.cancel(lambda each: each is second) == [second]
        assert set(world.handler.records) == {first, third}
        await world.until(lambda: len(world.handler.records) == 0)
        assert begun == [0]
        assert (second.task, third.task) == (None, None)
        assert await world.committed() == 1
        assert not world.source.halts

    play(scenario, ordering="key")


@pytest.mark.parametrize("step", range(12))
@pytest.mark.parametrize("who", ["the handler", "other code"])
def test_a_failing_record_can_be_cancelled_at_every_step(who, step):
    """Before its first step, in an attempt, in the backoff, in another attempt, and during its dead letter."""

    async def scenario(world):
        async def process(_raw):
            await asyncio.sleep(0)
            raise ConnectionError

        record = world.deliver(process, key=b"a")
        world.deliver(quick, key=b"a")
        for _ in range(step):
            await asyncio.sleep(0)
        ended = record.task.done()
        if who == "the handler":
            await world.handler.runner.cancel(lambda each: each is record)
        else:
            record.task.cancel()
        await asyncio.wait({record.task})
        await world.until(lambda: len(world.handler.records) == 0, within_sec=5)
        assert world.source.in_flight == world.handler.slots.reserved == 0
        assert len(world.source.dead_letters) == ended
        assert len(world.source.halts) == (who == "other code" and not ended)
        assert await world.committed() == (2 if ended else 0)

    policy = FailurePolicy(max_attempts=2, first_backoff_sec=0, then=DEAD)
    play(scenario, on_failure=policy, concurrency_limit=1, ordering="key")


def test_a_drain_gives_one_more_pass_to_those_that_begin_in_time():
    """A record whose backoff is longer is cancelled at once; dead letters of the last pass are published."""
    passes = Counter()

    async def scenario(world):
        def failing(name, error, duration_sec=1):
            async def process(_raw):
                passes[name] += 1
                await asyncio.sleep(duration_sec)
                raise error

            return process

        late = world.deliver(failing("late", AGAIN_IN_A_MINUTE), key=b"a")
        world.deliver(failing("behind late", ConnectionError()), key=b"a")
        world.deliver(failing("soon", NackMessage(delay=3)), partition=1)
        world.deliver(failing("dead", PermissionError(), 3), partition=2)
        await asyncio.sleep(2)
        began = world.handler.now()
        drain = asyncio.create_task(world.handler.records.drain(lambda _: True, timeout_sec=10))
        await asyncio.sleep(0.1)
        assert late.task.done()
        assert await drain
        assert world.handler.now() - began == pytest.approx(3)
        assert passes == {"late": 1, "soon": 2, "dead": 1}
        assert len(world.source.dead_letters) == 1
        assert not world.source.halts
        assert [await world.committed(partition) for partition in range(3)] == [0, 0, 1]

    policy = FailurePolicy(max_attempts=5, never_retry=PermissionError, then=DEAD)
    play(scenario, on_failure=policy, ordering="key")


def test_a_drain_goes_on_with_retries_that_begin_in_time():
    """Failed records are retried if there is time, and not after the drain."""

    async def scenario(world):
        async def process(_raw):
            await asyncio.sleep(1)
            if record.attempt < 4:
                raise ConnectionError

        async def fail_late(_raw):
            await asyncio.sleep(12)
            raise ConnectionError

        record = world.deliver(process)
        late = world.deliver(fail_late, partition=1)
        assert not await world.handler.records.drain(lambda _: True, timeout_sec=10)
        assert record.task.done()
        await asyncio.wait({late.task}, timeout=60)
        assert (record.attempt, late.attempt) == (4, 1)
        assert [await world.committed(partition) for partition in range(2)] == [1, 0]

    play(scenario, on_failure=FailurePolicy(max_attempts=0, first_backoff_sec=0.2, max_backoff_sec=0.5))


def test_a_drain_of_one_subscriber_leaves_the_retries_of_others_alone():
    """The other subscriber's records are retried as usual."""

    async def scenario(world):
        theirs = world.deliver(ask_again)
        ours = world.deliver(ask_again, partition=1)
        await asyncio.sleep(1)
        assert await world.handler.records.drain(lambda each: each is ours, timeout_sec=5)
        assert ours.task.done()
        assert set(world.handler.records) == {theirs}
        await asyncio.sleep(600)
        assert theirs.attempt > 5

    play(scenario)


@pytest.mark.parametrize("error", [ConnectionError("retriable"), PermissionError("never")], ids=repr)
@pytest.mark.parametrize("then", ["commit", "halt", DEAD], ids=str)
def test_what_fails_after_its_partition_has_gone_is_left_to_the_next_owner(error, then):
    """No retry, no dead letter and no halt: the next owner of the partition gets the record, and decides."""
    passes: list[int] = []

    async def outlast(raw):
        passes.append(raw.offset)
        await asyncio.sleep(10)
        raise error

    async def scenario(world):
        listener = ConcurrentRebalanceListener(world.handler, world.consumer, lambda _: True, {})
        world.deliver(outlast, key=b"a")
        world.deliver(outlast, key=b"a")
        await asyncio.sleep(1)
        await listener.on_partitions_revoked(world.consumer.assigned)
        assert world.handler.now() == pytest.approx(4)
        await listener.on_partitions_assigned(world.consumer.assigned)
        # The same partition has come back: the earlier record keeps its key until it ends.
        world.offsets[0] = 0
        again = world.deliver(quick, key=b"a")
        await asyncio.sleep(1)
        assert again.task is None
        await asyncio.sleep(60)
        assert passes == [0]
        assert again.task.done()
        assert not world.source.dead_letters
        assert not world.source.halts
        assert len(world.handler.records) == 0
        assert await world.committed() == 1

    policy = FailurePolicy(max_attempts=3, never_retry=PermissionError, then=then)
    play(scenario, on_failure=policy, ordering="key", rebalance_flush_timeout_sec=3)


def test_a_rebalance_ends_the_waits_for_attempts_and_dead_letters():
    """The next owner of the partition begins these records again."""

    async def deny(_raw):
        raise PermissionError

    async def scenario(world):
        world.source.publishing_sec = 600
        listener = ConcurrentRebalanceListener(world.handler, world.consumer, lambda _: True, {})
        world.deliver(ask_again)
        world.deliver(deny, partition=1)
        await asyncio.sleep(1)
        await listener.on_partitions_revoked(world.consumer.assigned)
        assert len(world.handler.records) == 0
        assert world.handler.now() == pytest.approx(4)
        assert not world.source.halts
        assert not world.source.dead_letters
        assert not world.consumer.commits

    play(scenario, on_failure=FailurePolicy(max_attempts=0, never_retry=PermissionError, then=DEAD))


def test_what_is_delivered_while_a_rebalance_commits_is_not_tried_again_here():
    """It is delivered after the drain, and fails after its partition was revoked."""

    async def slow(_raw):
        await asyncio.sleep(5)
        raise ConnectionError

    async def scenario(world):
        listener = ConcurrentRebalanceListener(world.handler, world.consumer, lambda _: True, {})
        await asyncio.wait({world.deliver(quick).task})
        world.consumer.hold = asyncio.Event()
        rebalance = asyncio.create_task(listener.on_partitions_revoked(world.consumer.assigned))
        await asyncio.sleep(0.2)
        late = world.deliver(slow, key=b"a")
        await asyncio.sleep(0.2)
        world.consumer.hold.set()
        await rebalance
        await asyncio.wait({late.task}, timeout=60)
        assert late.attempt == 1
        assert len(world.handler.records) == 0
        assert world.consumer.committed == {T0: 1}

    play(scenario, on_failure=FailurePolicy(max_attempts=0), ordering="key")


@pytest.mark.parametrize("error", [RuntimeError("broken"), ConnectionError(), TypeError("of ours")])
def test_commits_start_again_whatever_goes_wrong_at_an_assignment(error, caplog):
    """Commits are held since the revocation: without a release, the window would fill, and the partition stop."""

    def fail():
        raise error

    async def scenario(world):
        listener = ConcurrentRebalanceListener(world.handler, world.consumer, lambda _: True, {}, begin=fail)
        await listener.on_partitions_revoked(set())
        await listener.on_partitions_assigned(world.consumer.assigned)
        await asyncio.wait({world.deliver(quick).task})
        await world.until(lambda: world.consumer.committed == {T0: 1})

    play(scenario)
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]
