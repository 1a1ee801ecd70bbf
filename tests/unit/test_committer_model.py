"""The committer against an oracle: random admissions, completions, failures and rebalances in virtual time.

Invariants: I2, I6, I10.
"""

import asyncio

from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, KafkaConnectionError
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from faststream_concurrent_kafka import KafkaBatchCommitter
from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.scripted import ScriptedConsumer


PARTITIONS = [TopicPartition("orders", number) for number in range(3)]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("complete"), st.integers(0, 10_000)),
        st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.05, 0.4, 2.0, 7.0])),
        st.tuples(st.just("fail"), st.booleans()),
        st.tuples(st.just("hold broker"), st.booleans()),
        st.tuples(st.just("rebalance"), st.integers(0, 3)),
        st.tuples(st.just("seek"), st.integers(0, 2), st.integers(0, 5)),
        st.tuples(st.just("flush")),
    ),
    max_size=80,
)


class Model(ScriptedConsumer):
    """Remembers every finished record, and checks every commit as it arrives."""

    def __init__(self):
        super().__init__(*PARTITIONS)
        self.next_offset = dict.fromkeys(PARTITIONS, 0)
        self.epoch: dict[TopicPartition, dict[int, bool]] = {partition: {} for partition in PARTITIONS}
        self.running: list[tuple[Admission, dict[int, bool]]] = []

    def frontier(self, partition):
        records = self.epoch[partition]
        return next((offset for offset, finished in records.items() if not finished), max(records, default=-1) + 1)

    @override
    async def commit(self, offsets):
        await super().commit(offsets)
        for partition, offset in offsets.items():
            assert self.epoch[partition], "a commit for a partition that has delivered nothing in this epoch"
            assert offset <= self.frontier(partition), "past unfinished work"


async def play(steps):
    committer = KafkaBatchCommitter(commit_batch_size=5, commit_batch_timeout_sec=0.5)
    model = Model()
    committer.watch(model).is_group_managed = True
    committer.spawn()
    for step in steps:
        await take(committer, model, *step)
    # In any case: once everything has finished and the broker answers, everything is committed.
    model.errors.clear()
    if model.hold is not None:
        model.hold.set()
    if committer.watch(model).is_held:
        # A commit that lost ownership waits for partitions to be assigned, as Kafka has them assigned then.
        committer.release(model)
    while model.running:
        finish(committer, model, 0)
    await asyncio.sleep(30)
    for partition in PARTITIONS:
        if model.epoch[partition]:
            first = min(model.epoch[partition])
            assert (
                model.committed.get(partition, first) == model.frontier(partition) or model.frontier(partition) == first
            )
    assert model.most_in_flight <= 1
    assert committer.is_healthy
    await committer.close()


def finish(committer, model, number):
    task, epoch = model.running.pop(number % len(model.running))
    epoch[task.offset] = True
    committer.complete(task)


async def take(committer, model, action, *arguments):
    match action, arguments:
        case "admit", (partition_number, gap):
            partition = PARTITIONS[partition_number]
            offset = model.next_offset[partition] + gap
            task = Admission(partition, offset)
            committer.admit(model, task)
            model.epoch[partition][offset] = False
            model.running.append((task, model.epoch[partition]))
            model.next_offset[partition] = offset + 1
        case "complete", (number,) if model.running:
            finish(committer, model, number)
        case "sleep", (seconds,):
            await asyncio.sleep(seconds)
        case "fail", (lost,):
            model.errors.append(CommitFailedError() if lost else KafkaConnectionError())
        case "hold broker", (held,):
            if model.hold is not None:
                model.hold.set()
            model.hold = asyncio.Event() if held else None
        case "rebalance", (back,):
            await rebalance(committer, model, back)
        case "seek", (partition_number, back):
            await seek(committer, model, PARTITIONS[partition_number], back)
        case "flush", ():
            await committer.flush(model, timeout_sec=1)


async def rebalance(committer, model, back):
    await committer.hold(model)
    await committer.flush(model, timeout_sec=1)
    committer.end_epoch(model)
    for partition in PARTITIONS:
        model.epoch[partition] = {}
        model.next_offset[partition] = max(0, model.next_offset[partition] - back)
    committer.release(model)


async def seek(committer, model, partition, back):
    offset = model.next_offset[partition] - back
    if not model.epoch[partition] or offset < 0 or offset > max(model.epoch[partition]):
        return
    # A request of the old epoch must not be judged by the new one.
    await committer.flush(model, timeout_sec=1)
    model.next_offset[partition] = offset
    model.epoch[partition] = {}
    await take(committer, model, "admit", PARTITIONS.index(partition), 0)


@settings(max_examples=3 * settings().max_examples)
@given(steps=STEPS)
def test_every_commit_is_right_and_in_the_end_everything_is_committed(steps):
    """No commit passes unfinished work or is of an earlier epoch, one request is in flight, and all is committed."""
    run_virtual(play(steps))
