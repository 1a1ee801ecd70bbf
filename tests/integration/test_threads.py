"""Synchronous handlers on a real broker: how many run at once, and how others wait for a thread."""

import threading
import time

import pytest
from anyio.to_thread import current_default_thread_limiter
from faststream import Depends
from faststream.kafka import KafkaMessage

from faststream_concurrent_kafka import get_kafka_handler_report, is_kafka_handler_healthy
from testkit.brokers import wait_until
from tests.integration.helpers import both_loops, consuming, serving


@pytest.mark.asyncio(**both_loops)
async def test_as_many_run_at_once_as_there_are_slots(cluster, new_broker, new_topic):
    """Seventy handlers run at once, in a hundred threads at most."""
    topic, broker, done = await new_topic(), new_broker(), []
    together = threading.Barrier(70)

    @consuming(broker, topic)
    def handle(number: int):
        together.wait(20)
        done.append(number)

    await cluster.send(topic, range(70))
    async with serving(broker, concurrency_limit=70):
        await wait_until(lambda: len(done) == 70, 20, lambda: f"all at once, but {len(done)}")
        assert current_default_thread_limiter().total_tokens == 110
    assert current_default_thread_limiter().total_tokens == 40


@pytest.mark.parametrize("kind", ["handler", "dependency", "parameter"])
async def test_who_has_no_thread_yet_has_not_begun(cluster, new_broker, new_topic, kind):
    """All are handled one after the other, although they wait longer than their time limit; they count as waiting."""
    topic, broker, begun, waiting = await new_topic(), new_broker(), [], []
    current_default_thread_limiter().total_tokens = 1

    if kind == "handler":

        @consuming(broker, topic)
        def handle(number: int):
            begun.append(number)
            time.sleep(0.15)

    elif kind == "dependency":

        @consuming(broker, topic)
        async def handle_with_dependency(number: int, _: None = Depends(lambda: time.sleep(0.15))):
            begun.append(number)

    else:

        @consuming(broker, topic)
        async def handle_with_message(number: int, message: KafkaMessage, _: None = Depends(lambda: time.sleep(0.15))):
            assert message.raw_message
            begun.append(number)

    await cluster.send(topic, range(12))
    async with serving(broker, handler_timeout_sec=0.6, commit_batch_timeout_sec=0.05) as app:

        def all_begun():
            waiting.append(get_kafka_handler_report(app.context).waiting)
            return len(begun) == 12

        await wait_until(all_begun, 20, lambda: f"all are handled, but {begun}")
        await cluster.until_committed(topic, {0: 12})
        assert is_kafka_handler_healthy(app.context)
        assert current_default_thread_limiter().total_tokens == 1
    assert sorted(begun) == list(range(12))
    assert max(waiting) > 5
