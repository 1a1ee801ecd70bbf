"""For tests: an in-memory Kafka with consumers that behave as aiokafka's do, and an event loop whose time is virtual.

`FakeKafkaConsumer` passes the same contract suite as a real `AIOKafkaConsumer` on a real broker. It differs in three
points: a consumer notices a rebalance at once and not by a heartbeat, a record can be fetched as soon as it is
appended, and a cancelled `getone` doesn't switch `max_poll_interval_ms` off.
"""

from faststream_concurrent_kafka.testing.broker import FakeKafka
from faststream_concurrent_kafka.testing.consumer import FakeKafkaConsumer
from faststream_concurrent_kafka.testing.virtual_time import (
    DeadlockError,
    LeftoverTasksError,
    VirtualTimeLoop,
    run_virtual,
)


__all__ = ["DeadlockError", "FakeKafka", "FakeKafkaConsumer", "LeftoverTasksError", "VirtualTimeLoop", "run_virtual"]
