"""Order and retries, with stops and rebalances at random moments: random scripts in virtual time (I19)."""

import asyncio
import dataclasses

from aiokafka import TopicPartition
from faststream.exceptions import NackMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from faststream_concurrent_kafka import FailurePolicy
from faststream_concurrent_kafka._subscriber.rebalance import ConcurrentRebalanceListener
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.world import TOPIC, World


@dataclasses.dataclass(frozen=True)
class Script:
    """A record that fails, or is nacked, a few times, and the duration of its attempts."""

    key: bytes | None
    failures: int
    nacks: bool
    duration_sec: float


SCRIPTS = st.lists(
    st.builds(
        Script,
        key=st.sampled_from([b"a", b"a", b"b", None]),
        failures=st.sampled_from([0, 0, 1, 3]),
        nacks=st.booleans(),
        duration_sec=st.sampled_from([0, 0.3, 1, 4]),
    ),
    min_size=1,
    max_size=12,
)
OPTIONS = st.fixed_dictionaries(
    {
        "ordering": st.sampled_from(["unordered", "key", "partition"]),
        "concurrency_limit": st.sampled_from([0, 1, 3]),
        "rebalance_flush_timeout_sec": st.sampled_from([0, 0.5, 3]),
        "on_failure": st.builds(FailurePolicy, max_attempts=st.just(0), first_backoff_sec=st.sampled_from([0, 0.5, 5])),
    },
)
# When the next record comes, at a time with no other timer.
MOMENTS = st.floats(0, 9)


class Group:
    """One partition: after each rebalance its records are delivered again from the committed offset on."""

    def __init__(self, options, scripts):
        self.world = World(**options)
        self.listener = ConcurrentRebalanceListener(self.world.handler, self.world.consumer, lambda _: True, {})
        self.ordering = options["ordering"]
        self.scripts = scripts
        self.failed = dict.fromkeys(range(len(scripts)), 0)
        self.done: set[int] = set()
        self.running: list[int] = []
        self.begun: list[tuple[float, int]] = []
        self.wrong: list[str] = []

    def before_in_lane(self, offset):
        """Return the offsets that share a key with this one and come before it."""
        key = self.scripts[offset].key
        if self.ordering == "unordered" or (self.ordering == "key" and key is None):
            return set()
        return {each for each in range(offset) if self.ordering == "partition" or self.scripts[each].key == key}

    async def process(self, raw):
        offset, script = raw.offset, self.scripts[raw.offset]
        before = self.before_in_lane(offset)
        # Noted, not asserted: an AssertionError would be a failure of the record, and retried.
        if not before <= self.done:
            self.wrong.append(f"{offset} begins before {before - self.done} are done")
        if before & set(self.running):
            self.wrong.append(f"{offset} overlaps {before & set(self.running)}")
        if offset in self.running and (self.ordering == "partition" or (self.ordering == "key" and script.key)):
            self.wrong.append(f"{offset} overlaps itself")
        self.running.append(offset)
        self.begun.append((self.world.handler.now(), offset))
        try:
            await asyncio.sleep(script.duration_sec)
            if self.failed[offset] < script.failures:
                self.failed[offset] += 1
                raise NackMessage if script.nacks else ConnectionError
            self.done.add(offset)
        finally:
            self.running.remove(offset)

    async def committed(self):
        return self.world.consumer.committed.get(TopicPartition(TOPIC, 0), 0)

    async def deliver(self):
        """Deliver the uncommitted records."""
        self.world.offsets[0] = await self.committed()
        while self.world.offsets[0] < len(self.scripts):
            self.world.deliver(self.process, key=self.scripts[self.world.offsets[0]].key)

    async def rebalance(self):
        began = self.world.handler.now()
        await self.listener.on_partitions_revoked(self.world.consumer.assigned)
        timeout_sec = self.world.handler.settings.rebalance_flush_timeout_sec
        assert self.world.handler.now() - began <= timeout_sec + 0.01
        self.check_passes_since(began, began + timeout_sec)
        assert all(not record.is_idle and record.is_fenced for record in self.world.handler.records)
        await self.listener.on_partitions_assigned(self.world.consumer.assigned)

    def check_passes_since(self, began, deadline):
        """Check that failed records are retried before the deadline only, and nacked ones at most once."""
        since = [(at, offset) for at, offset in self.begun if at > began]
        assert all(at <= deadline for at, _ in since)
        nacked = [offset for _, offset in since if self.scripts[offset].nacks]
        assert len(set(nacked)) == len(nacked)

    def check_committed(self, committed):
        assert set(range(committed)) <= self.done
        assert self.world.source.halts == []


def play(options, scripts, scenario):
    async def main() -> None:
        group = Group(options, scripts)
        try:
            await scenario(group)
        finally:
            await group.world.handler.stop()
        assert not group.wrong

    run_virtual(main())


@settings(max_examples=settings().max_examples * 3 // 2)
@given(options=OPTIONS, scripts=SCRIPTS, moments=st.lists(MOMENTS, max_size=4))
def test_order_holds_over_rebalances_that_give_the_partition_back(options, scripts, moments):
    """No record begins before its predecessors are done, none overlap, and in the end everything is committed."""

    async def scenario(group):
        await group.deliver()
        for moment in moments:
            await asyncio.sleep(moment)
            await group.rebalance()
            group.check_committed(await group.committed())
            await group.deliver()
        await group.world.until(lambda: len(group.world.handler.records) == 0, within_sec=10_000)
        assert await group.world.committed() == len(scripts)
        assert group.done == set(range(len(scripts)))
        assert group.world.handler.slots.reserved == 0
        assert group.world.source.in_flight == 0

    play(options, scripts, scenario)


@settings(max_examples=settings().max_examples * 3 // 2)
@given(options=OPTIONS, scripts=SCRIPTS, moment=MOMENTS, timeout_sec=st.sampled_from([0, 0.5, 2, 6]))
def test_a_stop_commits_what_is_done_and_leaves_the_rest_in_order(options, scripts, moment, timeout_sec):
    """No pass begins after the drain; no record of its key overtakes one that is left undone."""

    async def scenario(group):
        await group.deliver()
        await asyncio.sleep(moment)
        began = group.world.handler.now()
        drained = await group.world.handler.records.drain(lambda _: True, timeout_sec=timeout_sec)
        assert drained == (len(group.world.handler.records) == 0)
        await group.world.handler.runner.cancel(lambda _: True)
        assert group.world.handler.now() - began <= timeout_sec + 0.01
        group.check_passes_since(began, began + timeout_sec)
        assert len(group.world.handler.records) == 0
        assert group.world.handler.slots.reserved == group.world.source.in_flight == len(group.running) == 0
        committed = await group.world.committed()
        group.check_committed(committed)
        assert committed not in group.done, "done, and not committed"
        # Deliver the rest again, as after a restart.
        group.world.handler.committer.end_epoch(group.world.consumer)
        await group.deliver()
        await group.world.until(lambda: len(group.world.handler.records) == 0, within_sec=10_000)
        assert await group.world.committed() == len(scripts)

    play(options, scripts, scenario)
