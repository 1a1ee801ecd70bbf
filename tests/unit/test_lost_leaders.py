"""While a position is not found, the library requests metadata with the leader, which aiokafka does not do."""

from typing import Any

from aiokafka import AIOKafkaConsumer
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka._subscriber.health import SubscriberHealth
from faststream_concurrent_kafka._upstream import consumers


async def test_who_leads_is_asked_soon_and_then_less_and_less_often(monkeypatch):
    """Metadata is requested after a second, then less and less often, and no more once the position is known."""
    consumer: Any = AIOKafkaConsumer()
    subscriber: Any = KafkaBroker(logger=None).subscriber("orders", group_id="billing")
    subscriber.consumer = consumer
    health = SubscriberHealth(subscriber, "the subscriber", stall_timeout_sec=60)

    def asked(seconds, *, lacks):
        times: list[int] = []
        monkeypatch.setattr(consumers, "lacks_position", lambda _: lacks)
        for second in seconds:
            monkeypatch.setattr(consumers, "ask_for_topics", lambda _, now=second: times.append(now))
            health.sample(second, is_busy=False, blocked={})
        return times

    try:
        assert asked(range(1, 181), lacks=True) == [2, 3, 5, 9, 17, 33, 63, 93, 123, 153]
        assert asked(range(181, 300), lacks=False) == []
        assert asked(range(300, 303), lacks=True) == [301, 302]
    finally:
        await consumer.stop()
