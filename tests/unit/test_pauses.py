"""A partition may be paused for several reasons, and is resumed when none is left (I23)."""

import itertools

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError

from faststream_concurrent_kafka._upstream.pauses import Pauses, Reason
from faststream_concurrent_kafka.testing import FakeKafka, FakeKafkaConsumer, run_virtual


P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
OURS = [reason for reason in Reason if reason is not Reason.USER]


def play(scenario):
    async def main():
        kafka = FakeKafka({"orders": 2})
        consumer = FakeKafkaConsumer("orders", kafka=kafka, group_id="billing")
        await consumer.start()
        try:
            await scenario(kafka, consumer, Pauses(consumer))
        finally:
            await consumer.stop()

    run_virtual(main())


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(Reason, 2)))
def test_it_is_paused_until_the_last_reason_has_gone(first, second):
    """In any order of the reasons, and for each partition separately."""

    async def scenario(_kafka, consumer, pauses):
        pauses.add(first, P0, P1)
        pauses.add(second, P0)
        pauses.remove(first, P0, P1)
        assert consumer.paused() == {P0}
        pauses.remove(first, P0)
        assert consumer.paused() == {P0}
        pauses.remove(second, P0)
        assert consumer.paused() == set()

    play(scenario)


@pytest.mark.parametrize("ours", OURS)
def test_the_users_calls_touch_the_users_reason_alone(ours):
    """The user's `resume` does not undo the library's pause, nor the reverse."""

    async def scenario(_kafka, consumer, pauses):
        pauses.add(ours, P0)
        consumer.resume(P0)
        assert consumer.paused() == {P0}
        consumer.pause(P0)
        pauses.remove(ours, P0)
        assert consumer.paused() == {P0}
        consumer.resume(P0)
        assert consumer.paused() == set()

    play(scenario)


@pytest.mark.parametrize("reason", Reason)
def test_a_new_assignment_has_no_pauses(reason):
    """aiokafka drops all pauses at an assignment, so earlier reasons do not count any more."""

    async def scenario(kafka, consumer, pauses):
        pauses.add(reason, P0)
        other = FakeKafkaConsumer("orders", kafka=kafka, group_id="billing")
        await other.start()
        await other.stop()
        while consumer.assignment() != {P0, P1} or kafka.groups["billing"].generation < 3:
            await consumer.getmany(timeout_ms=1)
        assert not pauses.has(reason, P0)
        for again in Reason:
            pauses.add(again, P0)
            pauses.remove(again, P0)
            assert consumer.paused() == set()

    play(scenario)


def test_as_the_consumers_own_the_calls_refuse_what_is_not_assigned():
    """And they add no reason."""

    async def scenario(_kafka, consumer, pauses):
        nowhere = TopicPartition("orders", 7)
        for call in (consumer.pause, consumer.resume):
            with pytest.raises(IllegalStateError):
                call(nowhere)
        assert not pauses.has(Reason.USER, nowhere)

    play(scenario)
