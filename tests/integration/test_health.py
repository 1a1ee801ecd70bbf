"""When health is green, and the contents of the report (I30)."""

import asyncio
import dataclasses
import time

import pytest
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaConnectionError
from faststream import FastStream
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage
from typing_extensions import override

from faststream_concurrent_kafka import (
    HealthReport,
    KafkaConcurrentProcessingMiddleware,
    get_kafka_handler_report,
    initialize_concurrent_processing,
    is_kafka_handler_alive,
    is_kafka_handler_healthy,
    processing,
    stop_concurrent_processing,
)
from testkit.brokers import wait_until
from testkit.brokers.process import free_ports
from tests.integration.helpers import Gated, Seen, both_loops, consuming, manual, serving
from tests.integration.rebalancing import add_partitions


@pytest.mark.asyncio(**both_loops)
async def test_healthy_from_initialising_to_stopping(cluster, new_broker, new_topic):
    """It is False before the initialisation, True with and without records, False after the stop."""
    topic, broker = await new_topic(), new_broker()
    seen = Gated().subscribe(broker, topic)
    assert not is_kafka_handler_healthy(broker.context)
    assert is_kafka_handler_alive(broker.context)
    async with serving(broker) as app:
        assert is_kafka_handler_healthy(app.context)
        assert is_kafka_handler_alive(app.context)
        await cluster.send(topic, range(5))
        await seen.until_running(5)
        assert is_kafka_handler_healthy(app.context)
        seen.gate.set()
        await seen.until(5)
        assert get_kafka_handler_report(app.context).problems == ()
    assert not is_kafka_handler_healthy(app.context)
    assert not is_kafka_handler_alive(app.context)
    (problem,) = get_kafka_handler_report(app.context).problems
    assert "not initialised" in problem


async def test_the_report_names_what_pins_a_partition(cluster, new_broker, new_topic):
    """Records in flight, waiting, and for each partition its marks and its oldest unfinished record with its age."""
    topic, broker, seen, gate = await new_topic(2), new_broker(), Seen(), asyncio.Event()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            if number == 3:
                await gate.wait()

    await cluster.send(topic, range(10), partition=0)
    await cluster.send(topic, range(10, 14), partition=1)
    async with serving(broker, commit_batch_timeout_sec=0.05) as app:
        await cluster.until_committed(topic, {0: 3, 1: 4})
        await seen.until(13)

        def settled():
            report = get_kafka_handler_report(app.context)
            return report if {each.acked for each in report.partitions} == {3, 4} else None

        report = await wait_until(settled, 5, "acknowledged")
        assert isinstance(report, HealthReport)
        assert (report.is_healthy, report.problems, report.in_flight, report.waiting) == (True, (), 1, 0)
        first, second = sorted(report.partitions, key=lambda each: each.partition)
        marks = (first.topic, first.partition, first.frontier, first.acked, first.uncommitted, first.unfinished)
        assert marks == (topic, 0, 3, 3, 7, 1)
        assert first.oldest_unfinished_offset == 3
        age_sec = first.oldest_unfinished_age_sec or 0
        assert 0 < age_sec < 30
        assert (second.frontier, second.acked, second.uncommitted, second.unfinished) == (4, 4, 0, 0)
        assert (second.oldest_unfinished_offset, second.oldest_unfinished_age_sec) == (None, None)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(report, "in_flight", 7)  # noqa: B010 - a type checker would object
        older = get_kafka_handler_report(app.context).partitions
        assert max(each.oldest_unfinished_age_sec or 0 for each in older) > age_sec
        gate.set()


async def test_waiting_counts_what_waits_for_another_turn(cluster, new_broker, new_topic):
    """A record that was not acknowledged is in flight and waiting until it is handled again."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    @consuming(broker, topic)
    async def handle(number: int, message: KafkaMessage):
        with seen.handling(number):
            if seen.counts[number] == 0:
                await message.nack()

    await cluster.send(topic, range(3))
    async with serving(broker, commit_batch_timeout_sec=0.05) as app:
        await wait_until(lambda: get_kafka_handler_report(app.context).waiting == 3, 10, "three wait")
        await cluster.until_committed(topic, {0: 3})
        assert get_kafka_handler_report(app.context).in_flight == 0


async def test_a_dead_consume_loop_is_noticed(cluster, new_broker, new_topic):
    """FastStream's loop was cancelled: the report names its subscriber, and not the other one."""
    topic, other, broker = await new_topic(), await new_topic(), new_broker()
    subscriber = broker.subscriber(topic, **manual(topic))
    subscriber(Gated().handle)
    seen = Gated().subscribe(broker, other)
    async with serving(broker) as app:
        for task in subscriber.tasks:
            task.cancel()
        await wait_until(lambda: not is_kafka_handler_healthy(app.context), 5, "noticed")
        (problem,) = get_kafka_handler_report(app.context).problems
        assert topic in problem
        assert "loop" in problem
        assert not is_kafka_handler_alive(app.context)
        await cluster.send(other, range(5))
        await seen.together(5)


async def test_a_stopped_subscriber_is_not_a_problem(new_broker, new_topic):
    """A subscriber that was stopped on purpose is no problem; started again, it is monitored again."""
    topic, broker = await new_topic(), new_broker()
    subscriber = broker.subscriber(topic, **manual(topic))
    subscriber(Gated().handle)
    async with serving(broker) as app:
        await subscriber.stop()
        assert is_kafka_handler_healthy(app.context)
        assert is_kafka_handler_alive(app.context)
        await subscriber.start()
        assert is_kafka_handler_healthy(app.context)


async def test_initialised_before_the_broker_starts_is_healthy(new_broker, new_topic):
    """Readiness does not turn red between initialising and the start of the broker."""
    broker = new_broker()
    Gated().subscribe(broker, await new_topic())
    async with serving(broker) as app:
        assert is_kafka_handler_healthy(app.context)
    handler = await initialize_concurrent_processing(broker.context, broker=broker)
    assert is_kafka_handler_healthy(broker.context)
    await handler.stop()
    assert not is_kafka_handler_healthy(broker.context)


class Assignor(RoundRobinPartitionAssignor):
    """An assignor that fails on demand, where aiokafka does not expect it."""

    fails = False

    @classmethod
    @override
    def metadata(cls, topics):
        """Return the metadata of the member's subscription."""
        if cls.fails:
            raise ZeroDivisionError
        return super().metadata(topics)


async def test_a_dead_group_coordination_is_noticed(cluster, new_broker, new_topic, monkeypatch):
    """aiokafka's coordination task has ended: only a restart of the process starts it again."""
    topic, broker = await new_topic(), new_broker(metadata_max_age_ms=500)
    subscriber = broker.subscriber(topic, **manual(topic), partition_assignment_strategy=[Assignor])
    subscriber(Gated().handle)
    async with serving(broker) as app:
        assert is_kafka_handler_alive(app.context)
        monkeypatch.setattr(Assignor, "fails", True)
        await add_partitions(cluster, topic, 2)
        await wait_until(lambda: not is_kafka_handler_alive(app.context), 10, "noticed")
        (problem,) = get_kafka_handler_report(app.context).problems
        assert problem.startswith("the group coordination of")
        assert topic in problem


async def test_a_stop_is_alive_until_it_is_over(cluster, new_broker, new_topic):
    """During a stop readiness is red and liveness green, so that no probe kills it; after it both are red."""
    topic, broker = await new_topic(), new_broker()
    seen = Gated().subscribe(broker, topic)
    async with serving(broker) as app:
        await cluster.send(topic, range(3))
        await seen.until_running(3)
        stopping = asyncio.create_task(stop_concurrent_processing(app.context))
        await wait_until(lambda: not is_kafka_handler_healthy(broker.context), 5, "stopping")
        assert is_kafka_handler_alive(broker.context)
        seen.gate.set()
        await stopping
        assert not is_kafka_handler_alive(app.context)
    await initialize_concurrent_processing(app.context)
    assert is_kafka_handler_alive(app.context)
    await stop_concurrent_processing(app.context)


async def test_a_start_that_has_failed_is_not_alive_once_that_is_over():
    """A process that waits for its broker is alive; one whose start has failed is not."""
    (unused,) = free_ports(1)
    broker = KafkaBroker([f"127.0.0.1:{unused}"], middlewares=[KafkaConcurrentProcessingMiddleware], logger=None)
    Gated().subscribe(broker, "anything")
    app = FastStream(broker, logger=None)
    await initialize_concurrent_processing(app.context)
    with pytest.raises(KafkaConnectionError):
        await app.start()
    assert is_kafka_handler_alive(app.context)
    await stop_concurrent_processing(app.context)
    assert not is_kafka_handler_alive(app.context)


async def test_a_blocked_event_loop_is_dead_to_other_threads(new_broker, new_topic, monkeypatch):
    """After a minute, here two seconds; a call on the loop itself proves that it runs."""
    monkeypatch.setattr(processing, "STUCK_AFTER_SEC", 2.0)
    broker = new_broker()
    Gated().subscribe(broker, await new_topic())

    async def ask_elsewhere():
        return await asyncio.to_thread(is_kafka_handler_alive, broker.context)

    async with serving(broker):
        assert await ask_elsewhere()
        blocking = asyncio.create_task(asyncio.to_thread(asked_until_dead, broker.context))
        # The thread calls while the loop is blocked.
        await asyncio.sleep(0)
        time.sleep(4)  # noqa: ASYNC251 - the loop is blocked
        assert is_kafka_handler_alive(broker.context)
        first, *_, last = await blocking
        assert (first, last) == (True, False)
        await wait_until(ask_elsewhere, 5, "alive again")


def asked_until_dead(context):
    """Call repeatedly in another thread, for some seconds at most; return the results."""
    answers, deadline = [], time.monotonic() + 6
    while False not in answers and time.monotonic() < deadline:
        answers.append(is_kafka_handler_alive(context))
        time.sleep(0.02)
    return answers
