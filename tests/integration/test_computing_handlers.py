"""Handlers that compute on the event loop, on a real broker: heartbeats are sent, and a blocking line is named."""

import asyncio
import time
from typing import Any

import pytest

from faststream_concurrent_kafka import get_kafka_handler_report
from testkit.brokers import wait_until
from tests.integration.helpers import Rebalances, Seen, both_loops, consuming, serving, warnings_of


SESSION: dict[str, Any] = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 1000}
COMPUTE_SEC = 0.15


@pytest.mark.asyncio(**both_loops)
async def test_many_that_wake_together_and_compute_longer_than_a_session_are_not_evicted(
    cluster, new_broker, new_topic
):
    """Nine seconds of computation become ready in one turn of the loop, and the member is not evicted."""
    topic, broker, seen, rebalances, gate = await new_topic(4), new_broker(), Seen(), Rebalances(), asyncio.Event()

    @consuming(broker, topic, listener=rebalances, **SESSION)
    async def handle(number: int):
        await gate.wait()
        time.sleep(COMPUTE_SEC)  # noqa: ASYNC251 - computes
        with seen.handling(number):
            pass

    await cluster.send(topic, range(60))
    async with serving(broker, commit_batch_timeout_sec=0.1) as app:
        await wait_until(lambda: get_kafka_handler_report(app.context).in_flight == 60, 20, "all wait")
        gate.set()
        await seen.until(60, timeout_sec=60)
        # The lag is measured every 0.25 s. If each turn takes 0.15 s, each measurement may see only 0.05 s of it.
        assert COMPUTE_SEC / 5 < get_kafka_handler_report(app.context).loop_lag_sec < 6
    assert rebalances.revoked == []
    assert set(seen.counts.values()) == {1}


async def test_a_handler_that_blocks_the_loop_is_named_by_its_line(cluster, new_broker, new_topic, caplog):
    """The log names it meanwhile; later the report does, and beyond half a session timeout the health check."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    def read_a_file_of_some_gigabytes():
        time.sleep(4)

    @consuming(broker, topic, **SESSION)
    async def handle(number: int):
        with seen.handling(number):
            read_a_file_of_some_gigabytes()

    await cluster.send(topic, [0])
    async with serving(broker) as app:
        await seen.until(1)
        await wait_until(lambda: get_kafka_handler_report(app.context).problems, 5, "it is reported")
        report = get_kafka_handler_report(app.context)
        assert 3 < report.loop_lag_sec < 10
        assert any("in handle > " in text and "read_a_file_of_some_gigabytes" in text for text in report.problems)
    assert any("blocked for" in text and "read_a_file_of_some_gigabytes" in text for text in warnings_of(caplog))
