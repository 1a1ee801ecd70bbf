"""When commits of refused and of healthy partitions are sent, in virtual time (I14)."""

import asyncio
import math
import random

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    OffsetMetadataTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from faststream_concurrent_kafka import KafkaBatchCommitter
from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._partition.offset_map import OffsetMap
from faststream_concurrent_kafka._partition.state import AGAIN_SEC, LEAST_AGAIN_SEC
from faststream_concurrent_kafka.testing import run_virtual


GOOD, BAD = TopicPartition("orders", 0), TopicPartition("gone", 0)
# The attempts at a refused partition before they are AGAIN_SEC apart.
DOUBLINGS = math.ceil(math.log2(AGAIN_SEC / LEAST_AGAIN_SEC))


class Broker:
    """Takes a part of a request, and then raises one error for all of it, as aiokafka does."""

    def __init__(self, *, hangs=False, answers=True):
        self.refused = {BAD}
        self.error: KafkaError = TopicAuthorizationFailedError(BAD.topic)
        self.hangs = hangs
        self.answers = answers
        self.longest_metadata = 4096
        # While this is set, it neither takes nor answers commits, but still returns committed offsets.
        self.takes_nothing = False
        self.failures = 0
        self.assigned = {GOOD, BAD}
        self.stored = {}
        self.requests = []

    def assignment(self):
        return self.assigned

    async def commit(self, offsets):
        self.requests.append(set(offsets))
        await asyncio.sleep(0.01)
        if self.takes_nothing:
            await asyncio.Event().wait()
        if self.failures:
            self.failures -= 1
            raise KafkaConnectionError
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
                # aiokafka retries a retriable error for ever.
                await asyncio.Event().wait()
            raise self.error

    async def committed(self, partition):
        await asyncio.sleep(0.01)
        if not self.answers:
            raise KafkaConnectionError
        return self.stored.get(partition, (None, ""))[0]

    def offset(self, key):
        """Return the committed offset."""
        return self.stored.get(key, (0, ""))[0]


class Flow:
    """Records of both partitions, a pair every 100 ms."""

    def __init__(self, committer, broker):
        self.committer = committer
        self.broker = broker
        self.next = 0
        self.last = {}
        self.sent = {}

    def finish_one(self, *keys):
        for key in keys or (GOOD, BAD):
            task = self.last[key] = Admission(key, self.next, timestamp=self.next)
            self.committer.admit(self.broker, task)
            self.committer.complete(task)
        self.next += 1

    def send(self, key, *offsets):
        tasks = [Admission(key, offset, timestamp=offset) for offset in offsets]
        for task in tasks:
            self.committer.admit(self.broker, task)
        self.sent[key] = tasks
        return tasks

    async def run(self, seconds, *keys):
        for _ in range(int(seconds * 10)):
            self.finish_one(*keys)
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
    """The others are acknowledged as usual; the refused one is sent separately, logged once, and turns health red."""
    broker = Broker(hangs=hangs)

    async def scenario(committer, flow):
        await flow.run(40)
        good = flow.last[GOOD].ledger
        assert good.frontier - good.acked < 40
        assert broker.offset(GOOD) > 350
        assert flow.last[BAD].ledger.acked == 0
        alone = [each for each in broker.requests if each == {BAD}]
        both = [each for each in broker.requests if len(each) == 2]
        assert 40 / (AGAIN_SEC + 3) - 1 <= len(alone) <= 40 / AGAIN_SEC + 1 + DOUBLINGS
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
    """The broker may be down: all partitions are sent again together, and health names no single one."""
    broker = Broker(answers=False)

    async def scenario(committer, flow):
        await flow.run(30)
        assert all(len(each) == 2 for each in broker.requests)
        (problem,) = committer.problems()
        assert "no commit has succeeded" in problem

    play(scenario, broker)


def test_what_was_refused_gets_one_more_chance_before_it_goes():
    """If the right was granted at the last moment, the last flush commits the partition."""
    broker = Broker()

    async def scenario(committer, flow):
        await flow.run(3)
        broker.refused.clear()
        assert await committer.flush(broker, timeout_sec=3.0)
        assert broker.offset(BAD) == broker.offset(GOOD) == flow.next

    play(scenario, broker)


def test_a_flush_stays_within_its_time_although_a_partition_is_refused():
    """A rebalance waits for the flush."""
    broker = Broker(hangs=True)

    async def scenario(committer, flow):
        await flow.run(10)
        began = asyncio.get_running_loop().time()
        assert not await committer.flush(broker, timeout_sec=1.5)
        assert asyncio.get_running_loop().time() - began <= 1.6
        assert broker.offset(GOOD) == flow.next

    play(scenario, broker)


@pytest.mark.parametrize("drain_sec", [0.05, 1, 3, 7])
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("hangs", [False, True])
def test_before_partitions_go_the_healthy_ones_are_committed_first(drain_sec, is_known, hangs):
    """Also if the refused ones are due, or a partition is first refused in this commit."""
    broker = Broker(hangs=hangs)
    if not is_known:
        broker.refused.clear()

    async def scenario(committer, flow):
        await flow.run(5)
        await committer.hold(broker)
        await flow.run(drain_sec)
        broker.refused.add(BAD)
        flow.finish_one()
        assert not await committer.flush(broker, timeout_sec=1.0)
        assert broker.offset(GOOD) == flow.next
        assert broker.offset(BAD) < flow.next

    play(scenario, broker)


def test_what_finishes_while_a_refused_partition_has_its_chance_is_committed():
    """The refused request may take two seconds, in which handlers that have outlasted the drain go on."""
    broker = Broker(hangs=True)

    async def scenario(committer, flow):
        await flow.run(8)
        await committer.hold(broker)
        flush = asyncio.get_running_loop().create_task(committer.flush(broker, timeout_sec=3.0))
        await flow.run(1.5)
        await flush
        assert broker.offset(GOOD) == flow.next

    play(scenario, broker)


def test_what_the_last_commit_has_achieved_is_known(caplog):
    """One of three partitions is refused in it; the other two count as committed."""
    broker = Broker()
    broker.refused.clear()

    async def scenario(committer, flow):
        await flow.run(1)
        await committer.hold(broker)
        flow.finish_one()
        broker.refused.add(BAD)
        await committer.flush(broker, timeout_sec=1.0)
        assert flow.last[GOOD].ledger.acked == flow.next
        assert flow.last[BAD].ledger.acked < flow.next

    play(scenario, broker)
    assert sum("gone[0]" in record.message and "refuses" in record.message for record in caplog.records) == 1


def test_after_a_rebalance_it_goes_on_being_tried():
    """The retry time passes during the rebalance, and the partition is still retried afterwards."""
    broker = Broker()

    async def scenario(committer, flow):
        await flow.run(1)
        await committer.hold(broker)
        await committer.flush(broker, timeout_sec=1.0)
        await asyncio.sleep(1)
        committer.release(broker)
        await asyncio.sleep(1)
        broker.refused.clear()
        await asyncio.sleep(AGAIN_SEC)
        assert broker.offset(BAD) == flow.next

    play(scenario, broker)


@pytest.mark.parametrize("every_sec", [4, 12])
def test_a_rebalance_does_not_forget_for_how_long_a_partition_has_been_refused(every_sec):
    """It is retried at once, and health turns red although no assignment lasts as long as the limit."""
    broker = Broker()

    async def scenario(committer, flow):
        for _ in range(4):
            await flow.run(every_sec)
            await committer.hold(broker)
            await committer.flush(broker, timeout_sec=1.0)
            committer.end_epoch(broker)
            committer.release(broker)
        await flow.run(1)
        (problem,) = committer.problems()
        assert "gone[0]" in problem
        broker.refused.clear()
        await committer.hold(broker)
        committer.end_epoch(broker)
        committer.release(broker)
        await flow.run(1)
        assert broker.offset(BAD) >= flow.next - 5
        assert committer.is_healthy

    play(scenario, broker)


def test_a_refused_partition_that_others_have_now_is_no_problem_of_ours():
    """The member that owns it reports it."""
    broker = Broker()

    async def scenario(committer, flow):
        await flow.run(20)
        assert not committer.is_healthy
        await committer.hold(broker)
        committer.end_epoch(broker)
        broker.assigned = {GOOD}
        committer.release(broker)
        flow.finish_one(GOOD)
        assert committer.is_healthy

    play(scenario, broker)


def test_a_commit_without_an_answer_is_not_a_refusal(caplog):
    """Another partition's offset was committed before, and only its metadata is new: this proves nothing was taken."""
    broker = Broker()
    broker.refused.clear()

    async def scenario(committer, flow):
        stuck = flow.send(GOOD, 0, 1)[1]
        committer.complete(flow.sent[GOOD][0])
        flow.finish_one(BAD)
        await asyncio.sleep(1)
        broker.takes_nothing = True
        for task in flow.send(GOOD, *range(2, 30)):
            committer.complete(task)
        flow.finish_one(BAD)
        await asyncio.sleep(18)
        (problem,) = committer.problems()
        assert "no commit has succeeded" in problem
        broker.takes_nothing = False
        await asyncio.sleep(10)
        assert committer.is_healthy
        offset, metadata = broker.stored[GOOD]
        assert (offset, stuck.offset) == (1, 1)
        assert set(OffsetMap.parse(metadata, 1).finished_from(0)) == set(range(2, 30))

    play(scenario, broker, commit_metadata=True)
    assert not any("refuses" in record.message for record in caplog.records)


def test_alone_it_is_a_failure_like_any_other():
    """A single partition can't be distinguished from the whole request."""
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


@pytest.mark.parametrize("longest", [10, 64, 100, 1000])
def test_metadata_that_is_too_long_for_the_broker_never_blocks_a_commit(longest, caplog):
    """Less metadata is sent from then on, or none if none fits, with one warning."""
    broker = Broker()
    broker.refused.clear()
    broker.longest_metadata = longest

    async def scenario(committer, flow):
        stuck = flow.send(GOOD, 0)
        others = flow.send(GOOD, *range(1, 6000))
        chosen = random.Random(1)  # noqa: S311 - so that it can't be packed well
        for task in others:
            if chosen.random() < 0.5:
                committer.complete(task)
        flow.next = 6000
        await flow.run(2, BAD)
        assert broker.offset(BAD) > 6000 + 15
        metadata = broker.stored[GOOD][1] if GOOD in broker.stored else ""
        assert len(metadata) <= longest
        assert len(metadata) >= longest // 2 or longest < 64
        for task in (*stuck, *others):
            if not task.is_finished:
                committer.complete(task)
        await asyncio.sleep(1)
        assert broker.offset(GOOD) == 6000
        assert committer.is_healthy

    play(scenario, broker, commit_metadata=True)
    assert sum("offset.metadata.max.bytes" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("longest", [10, 1000])
def test_a_last_commit_whose_metadata_is_too_long_goes_without_it(longest):
    """The broker may refuse metadata for the first time when there is no later attempt."""
    broker = Broker()
    broker.refused.clear()
    broker.longest_metadata = longest

    async def scenario(committer, flow):
        tasks = flow.send(GOOD, *range(6000))
        chosen = random.Random(1)  # noqa: S311 - so that it can't be packed well
        await committer.hold(broker)
        for task in tasks:
            if task.offset < 400 or (task.offset > 400 and chosen.random() < 0.5):
                committer.complete(task)
        assert await committer.flush(broker, timeout_sec=1.0)
        assert broker.offset(GOOD) == 400

    play(scenario, broker, commit_metadata=True)


@pytest.mark.parametrize("failures", [1, 3])
def test_a_last_commit_that_fails_is_tried_again_within_its_time(failures):
    """Because there is no later attempt."""
    broker = Broker()
    broker.refused.clear()
    broker.failures = failures

    async def scenario(committer, flow):
        await committer.hold(broker)
        flow.finish_one()
        assert await committer.flush(broker, timeout_sec=1.0)
        assert broker.offset(GOOD) == broker.offset(BAD) == 1
        broker.failures = 100
        flow.finish_one()
        began = asyncio.get_running_loop().time()
        assert not await committer.flush(broker, timeout_sec=0.5)
        assert asyncio.get_running_loop().time() - began <= 0.51

    play(scenario, broker)


def test_a_refused_partition_with_a_full_window_is_tried_no_more_often():
    """A full window makes a commit due at once, but no commit frees a place: the loop must not spin."""
    broker = Broker()
    asked = 0

    def assignment():
        nonlocal asked
        asked += 1
        assert asked < 1000, "it is asked for again and again"
        return broker.assigned

    broker.assignment = assignment

    async def scenario(committer, flow):
        await flow.run(1)
        flow.last[BAD].ledger.room_wanted = 1
        committer.make_room(flow.last[BAD])
        await flow.run(12)
        assert broker.offset(GOOD) > 100
        alone = [request for request in broker.requests if request == {BAD}]
        assert 1 <= len(alone) <= 4 + DOUBLINGS

    play(scenario, broker)


def test_an_unauthorised_topic_alone_in_a_request_holds_up_no_other():
    """It is refused at once, and not the reason to wait before the next commit."""
    broker = Broker()

    async def scenario(_committer, flow):
        await flow.run(8, BAD)
        assert all(each == {BAD} for each in broker.requests)
        flow.finish_one(GOOD)
        await asyncio.sleep(0.5)
        assert broker.offset(GOOD) == flow.next

    play(scenario, broker)
