"""The only broker is killed with records in flight, and comes back."""

import asyncio

import pytest
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    get_kafka_handler_report,
    is_kafka_handler_healthy,
)
from testkit.brokers import wait_until
from tests.integration.helpers import Cluster, Gated, serving


pytestmark = [pytest.mark.cluster]


async def test_health_turns_red_while_commits_fail_and_green_when_the_broker_is_back(own_kafka, new_topic):
    """Handlers finish meanwhile, no task ends, and after the broker's return everything is committed."""
    server = own_kafka()
    cluster = Cluster(server.bootstrap_servers)
    topic = await new_topic(2, bootstrap=server.bootstrap_servers)
    broker = KafkaBroker(
        server.bootstrap_servers,
        middlewares=[KafkaConcurrentProcessingMiddleware],
        logger=None,
        request_timeout_ms=3000,
    )
    seen = Gated(free=10).subscribe(broker, topic)
    await cluster.send(topic, range(60))
    async with serving(broker, commit_batch_timeout_sec=0.1, commit_failure_timeout_sec=2) as app:
        await seen.until_running(50)
        assert is_kafka_handler_healthy(app.context)
        server.kill(0)
        seen.gate.set()
        await seen.until(60)
        await wait_until(lambda: not is_kafka_handler_healthy(app.context), 20, "red")
        (problem,) = get_kafka_handler_report(app.context).problems
        assert "commit" in problem
        await asyncio.to_thread(server.restart, 0)
        await wait_until(lambda: is_kafka_handler_healthy(app.context), 60, "green again")

        async def all_committed():
            return sum((await cluster.committed(topic)).values()) == 60

        await wait_until(all_committed, 30, "everything is committed")
        await cluster.send(topic, range(60, 70))
        await seen.until(70)
    assert seen.counts == dict.fromkeys(range(70), 1)
    assert sum((await cluster.committed(topic)).values()) == 70
