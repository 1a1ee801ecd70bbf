"""A stop and a rebalance that wait for the same last record, and commit at the same moment (I17)."""

import asyncio

import pytest
from aiokafka import TopicPartition
from typing_extensions import override

from faststream_concurrent_kafka import KafkaBatchCommitter
from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.scripted import ScriptedConsumer


PARTITION = TopicPartition("orders", 0)


class SlowConsumer(ScriptedConsumer):
    """A consumer whose broker takes a moment to answer commits."""

    @override
    async def commit(self, offsets):
        await asyncio.sleep(0.01)
        await super().commit(offsets)


@pytest.mark.parametrize("first", ["revoke", "stop"])
def test_a_stop_beside_a_rebalance_leaves_what_is_finished_committed(first):
    """Both drains end with the same record: neither may cancel the other's commit."""

    async def play():
        consumer = SlowConsumer(PARTITION)
        committer = KafkaBatchCommitter()
        committer.watch(consumer).is_group_managed = True
        committer.spawn()
        last_record_is_done = asyncio.Event()

        async def revoke():
            await committer.hold(consumer)
            await last_record_is_done.wait()
            try:
                return await committer.flush(consumer, timeout_sec=1)
            finally:
                committer.end_epoch(consumer)

        async def stop():
            await last_record_is_done.wait()
            await committer.hold(consumer)
            return await committer.flush(consumer, timeout_sec=15)

        task = Admission(PARTITION, 41)
        committer.admit(consumer, task)
        ends = [revoke(), stop()] if first == "revoke" else [stop(), revoke()]
        waiting = [asyncio.create_task(each) for each in ends]
        await asyncio.sleep(0)
        committer.complete(task)
        last_record_is_done.set()
        said = await asyncio.gather(*waiting)
        await committer.close()
        return consumer.commits, said

    commits, said = run_virtual(play())
    assert {PARTITION: 42} in commits
    assert said == [True, True]
