"""Partitions that the broker refuses, and those that it takes: who is sent when, in virtual time."""

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    OffsetMetadataTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from faststream_concurrent_kafka import KafkaBatchCommitter, KafkaCommitTask
from faststream_concurrent_kafka.refusals import AGAIN_SEC
from faststream_concurrent_kafka.testing import run_virtual


GOOD, BAD = TopicPartition("orders", 0), TopicPartition("gone", 0)


class Broker:
    """Takes what it takes of a request, and then answers as aiokafka does: with one error for all of it."""

    def __init__(self, *, hangs=False, answers=True):
        self.refused = {BAD}
        self.error: KafkaError = TopicAuthorizationFailedError(BAD.topic)
        self.hangs = hangs
        self.answers = answers
        self.longest_metadata = 4096
        self.stored = {}
        self.requests = []

    def assignment(self):
        return {GOOD, BAD}

    async def commit(self, offsets):
        self.requests.append(set(offsets))
        await asyncio.sleep(0.01)
        too_long = False
        for key, value in offsets.items():
            offset, metadata = value if isinstance(value, tuple) else (value, "")
            if len(metadata) > self.longest_metadata:
                too_long = True
            elif key not in self.refused:
                self.stored[key] = (offset, metadata)
        if too_long:
            raise OffsetMetadataTooLargeError
        if not self.refused.isdisjoint(offsets):
            if self.hangs:
                # A retriable error is retried inside for ever.
                await asyncio.Event().wait()
            raise self.error

    async def committed(self, partition):
        await asyncio.sleep(0.01)
        if not self.answers:
            raise KafkaConnectionError
        return self.stored.get(partition, (None, ""))[0]

    def offset(self, key):
        """Return what is committed."""
        return self.stored.get(key, (0, ""))[0]


class Flow:
    """Records of both partitions, a pair every 100 ms."""

    def __init__(self, committer, broker):
        self.committer = committer
        self.broker = broker
        self.next = 0
        self.last = {}

    def finish_one(self, *keys):
        for key in keys or (GOOD, BAD):
            task = self.last[key] = KafkaCommitTask(self.broker, key, self.next, timestamp=self.next)
            self.committer.send_task(task)
            self.committer.complete(task)
        self.next += 1

    async def run(self, seconds):
        for _ in range(int(seconds * 10)):
            self.finish_one()
            await asyncio.sleep(0.1)


def play(scenario, broker, **options):
    async def main() -> None:
        committer = KafkaBatchCommitter(
            commit_batch_size=1000, commit_batch_timeout_sec=0.2, commit_failure_timeout_sec=15.0, **options
        )
        committer.spawn()
        try:
            await scenario(committer, Flow(committer, broker))
        finally:
            await committer.close()

    run_virtual(main())


@pytest.mark.parametrize("hangs", [False, True])
def test_a_refused_partition_does_not_hold_up_the_others(hangs, caplog):
    """They are acknowledged as before; it is tried alone, now and then, is said once, and turns health red."""
    broker = Broker(hangs=hangs)

    async def scenario(committer, flow):
        await flow.run(40)
        good = flow.last[GOOD].ledger
        assert good.frontier - good.acked < 40
        assert broker.offset(GOOD) > 350
        assert flow.last[BAD].ledger.acked == 0
        alone = [each for each in broker.requests if each == {BAD}]
        both = [each for each in broker.requests if len(each) == 2]
        assert 40 / (AGAIN_SEC + 3) - 1 <= len(alone) <= 40 / AGAIN_SEC + 1
        assert len(both) == 1
        (problem,) = committer.problems()
        assert "gone[0]" in problem
        assert "refused" in problem
        assert not hangs or "Timeout" in problem
        broker.refused.clear()
        await flow.run(AGAIN_SEC + 3)
        assert flow.last[BAD].ledger.acked > 400
        assert committer.is_healthy

    play(scenario, broker)
    said = [record.message for record in caplog.records if "refuse" in record.message]
    assert len(said) == 2
    assert "gone[0]" in said[0]
    assert "not refused any more" in said[1]


def test_without_an_answer_nothing_is_known_to_be_refused():
    """The broker may be down: everything is tried again as a whole, and is red as a whole."""
    broker = Broker(answers=False)

    async def scenario(committer, flow):
        await flow.run(30)
        assert all(len(each) == 2 for each in broker.requests)
        (problem,) = committer.problems()
        assert "no commit has succeeded" in problem

    play(scenario, broker)


def test_what_was_refused_gets_one_more_chance_before_it_goes():
    """Granted in the last moment, it is committed by the last flush."""
    broker = Broker()

    async def scenario(committer, flow):
        await flow.run(3)
        broker.refused.clear()
        assert await committer.flush(broker, timeout_sec=3.0)
        assert broker.offset(BAD) == broker.offset(GOOD) == flow.next

    play(scenario, broker)


def test_a_flush_stays_within_its_time_although_a_partition_is_refused():
    """A rebalance waits for it."""
    broker = Broker(hangs=True)

    async def scenario(committer, flow):
        await flow.run(10)
        began = asyncio.get_running_loop().time()
        assert not await committer.flush(broker, timeout_sec=1.5)
        assert asyncio.get_running_loop().time() - began <= 1.6
        assert broker.offset(GOOD) == flow.next

    play(scenario, broker)


def test_a_new_assignment_starts_without_refusals():
    """Who gets the partition next finds out for itself."""
    broker = Broker()

    async def scenario(committer, flow):
        await flow.run(3)
        await committer.hold(broker)
        committer.end_epoch(broker)
        committer.release(broker)
        broker.refused.clear()
        await flow.run(1)
        assert broker.offset(BAD) >= flow.next - 5

    play(scenario, broker)


def test_alone_it_is_a_failure_like_any_other():
    """Nothing else is there that could go on."""
    broker = Broker()
    broker.error = UnknownTopicOrPartitionError()

    async def scenario(committer, flow):
        flow.finish_one(BAD)
        await asyncio.sleep(20)
        (problem,) = committer.problems()
        assert "no commit has succeeded" in problem
        broker.refused.clear()
        await asyncio.sleep(10)
        assert broker.offset(BAD) == 1
        assert committer.is_healthy

    play(scenario, broker)


def test_metadata_that_is_too_long_for_the_broker_never_blocks_a_commit(caplog):
    """It is left out from then on, with one warning."""
    broker = Broker()
    broker.refused.clear()
    broker.longest_metadata = 10

    async def scenario(committer, flow):
        stuck = KafkaCommitTask(broker, GOOD, 0, timestamp=1)
        committer.send_task(stuck)
        flow.next = 1
        await flow.run(3)
        assert broker.offset(BAD) > 25
        committer.complete(stuck)
        await asyncio.sleep(1)
        assert broker.offset(GOOD) == flow.next
        assert committer.is_healthy

    play(scenario, broker, commit_metadata=True)
    assert sum("offset.metadata.max.bytes" in record.message for record in caplog.records) == 1
