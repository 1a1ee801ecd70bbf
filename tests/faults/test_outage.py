"""The only broker is gone for 20 s while records flow: killed, or silent with its sockets open (I12)."""

import asyncio

import pytest

from faststream_concurrent_kafka import is_kafka_handler_healthy
from testkit.brokers import wait_until
from tests.faults.scene import Busy, Busyness, Watch, broker_at, until_all_committed
from tests.integration.helpers import Cluster, serving


OUTAGE_SEC = 20
# A killed broker can register again only when its old registration has expired.
COMES_BACK_IN_SEC = 7
WINDOW = 100
# Many more than are handled before the outage and while nothing is committed.
RECORDS = 1_500


async def _killed(server, gone):
    server.kill(0)
    await wait_until(lambda: gone.seconds > OUTAGE_SEC - COMES_BACK_IN_SEC, OUTAGE_SEC, "the broker is down")
    await asyncio.to_thread(server.restart, 0)


async def _silent(server, gone):
    server.pause(0)
    try:
        await wait_until(lambda: gone.seconds > OUTAGE_SEC, OUTAGE_SEC + 5, "the broker is silent")
    finally:
        server.resume(0)


@pytest.mark.slow("the broker is gone for 20 s")
@pytest.mark.parametrize("outage", [_killed, _silent])
async def test_the_only_broker_is_gone_for_20_s(own_kafka, new_topic, outage):
    """No record is lost or run twice; health is red, then green; the window bounds memory, and the process is idle."""
    server = own_kafka()
    cluster = Cluster(server.bootstrap_servers)
    topic = await new_topic(2, bootstrap=server.bootstrap_servers)
    broker = broker_at(server.bootstrap_servers)
    seen = Busy().subscribe(broker, topic)
    await cluster.send(topic, range(RECORDS))
    settings = {"commit_batch_timeout_sec": 0.1, "commit_failure_timeout_sec": 5, "max_uncommitted_tasks": WINDOW}
    async with serving(broker, concurrency_limit=20, **settings) as app, Watch.over(app) as watch:
        await seen.until(300)
        assert is_kafka_handler_healthy(app.context)
        gone = Busyness()
        await outage(server, gone)
        assert gone.seconds > OUTAGE_SEC - COMES_BACK_IN_SEC
        assert gone.share < 0.3
        assert any("no commit has succeeded" in problem for problem in watch.problems)
        assert len(seen.values) < RECORDS, "records were still to come when the broker went"
        await wait_until(lambda: is_kafka_handler_healthy(app.context), 20, "green again")
        await cluster.send(topic, range(RECORDS, RECORDS + 100))
        await seen.until_all_of(range(RECORDS + 100))
        await until_all_committed(cluster, topic)
        assert watch.largest_window <= WINDOW
    assert not seen.repeated
