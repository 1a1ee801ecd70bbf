"""The virtual clock, and what a test can make the fake Kafka do."""

import asyncio
import time

import pytest
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    GroupCoordinatorNotAvailableError,
    OffsetMetadataTooLargeError,
    RebalanceInProgressError,
)
from aiokafka.structs import OffsetAndMetadata
from typing_extensions import override

from faststream_concurrent_kafka.testing import (
    DeadlockError,
    FakeKafka,
    FakeKafkaConsumer,
    LeftoverTasksError,
    VirtualTimeLoop,
    run_virtual,
)


ZERO, ONE = TopicPartition("topic", 0), TopicPartition("topic", 1)


class TestVirtualTime:
    def test_time_jumps_to_the_next_timer(self):
        """An hour's sleep takes an hour of the loop's time, and none of ours."""

        async def main():
            await asyncio.sleep(3600)
            return asyncio.get_running_loop().time()

        began = time.monotonic()
        assert run_virtual(main()) == pytest.approx(3600)
        assert time.monotonic() - began < 60

    def test_timers_fire_in_their_order(self):
        """Several sleepers wake in the order of their times, each at its own."""
        woken = []

        async def sleeper(seconds):
            await asyncio.sleep(seconds)
            woken.append((seconds, asyncio.get_running_loop().time()))

        async def main():
            await asyncio.gather(*map(sleeper, [300, 0.5, 20]))

        run_virtual(main())
        assert woken == [(0.5, pytest.approx(0.5)), (20, pytest.approx(20)), (300, pytest.approx(300))]

    def test_timeouts_are_virtual(self):
        """`asyncio.timeout` expires at its virtual time."""

        async def main():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(60):
                    await asyncio.Event().wait()
            return asyncio.get_running_loop().time()

        assert run_virtual(main()) == pytest.approx(60)

    def test_what_is_ready_comes_before_time_passes(self):
        """While any task is ready, the clock does not advance."""

        async def main():
            for _ in range(1000):
                await asyncio.sleep(0)
            return asyncio.get_running_loop().time()

        assert run_virtual(main()) == 0

    @pytest.mark.parametrize(
        ("wait", "times", "turns"),
        [
            (lambda left: left, 2000, 3),
            (lambda left: left / 2, 200, 100),
            (lambda _: 0, 2, 20_000),
            (lambda _: 1e-30, 2, 20_000),
        ],
        ids=["what is left", "half of it", "nothing", "next to nothing"],
    )
    def test_it_comes_to_a_moment_however_small_the_waits_are(self, wait, times, turns):
        """A wait that is too small to be added to the time, or none at all, does not make the clock stand still."""

        async def main():
            loop = asyncio.get_running_loop()
            for number in range(times):
                await asyncio.sleep(number / 7 % 1)
                began = loop.time()
                for _ in range(turns):
                    if (left := 0.001 - (loop.time() - began)) <= 0:
                        break
                    await asyncio.sleep(wait(left))
                else:
                    pytest.fail(f"the moment has not come after {turns} waits")

        run_virtual(main())

    def test_a_wait_that_is_too_small_for_the_time_keeps_the_order(self):
        """Later timers fire after it; a timer for a past moment fires at once."""
        ran = []

        async def main():
            loop = asyncio.get_running_loop()
            await asyncio.sleep(1e6)
            loop.call_later(1, ran.append, "a second")
            loop.call_later(1e-12, ran.append, "nothing")
            loop.call_at(5, ran.append, "the past")
            await asyncio.sleep(2)
            return loop.time()

        assert run_virtual(main()) == 1e6 + 2
        assert sorted(ran[:2]) == ["nothing", "the past"]
        assert ran[2:] == ["a second"]

    def test_deadlock_names_who_waits(self):
        """Nothing ready and no timer is an error that names the tasks, not a test that hangs."""

        async def main():
            stuck = asyncio.create_task(asyncio.Event().wait(), name="the stuck one")
            await stuck

        with pytest.raises(DeadlockError, match="the stuck one"):
            run_virtual(main())

    def test_leftover_tasks_are_named_and_cancelled(self):
        """Tasks that still run when the coroutine has returned are cancelled, awaited and reported."""
        ended = []

        async def forgotten():
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(1)
                ended.append(True)

        async def main():
            task = asyncio.create_task(forgotten(), name="the forgotten one")
            await asyncio.sleep(1)
            assert not task.done()

        with pytest.raises(LeftoverTasksError, match="the forgotten one"):
            run_virtual(main())
        assert ended == [True]

    def test_an_error_comes_before_leftover_tasks(self):
        """The coroutine's own error is raised, and its tasks are cancelled all the same."""
        tasks = []

        async def main():
            tasks.append(asyncio.create_task(asyncio.sleep(60)))
            raise KeyError("its own")

        with pytest.raises(KeyError, match="its own"):
            run_virtual(main())
        assert tasks[0].cancelled()

    def test_loop_can_be_used_by_itself(self):
        """It is an ordinary event loop, for programs with their own runner."""
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            assert runner.run(asyncio.sleep(86_400 * 3, "slept")) == "slept"
            assert runner.get_loop().time() == pytest.approx(86_400 * 3)


class Noting(ConsumerRebalanceListener):
    def __init__(self, revoke_sec=0):
        self.calls = []
        self.revoke_sec = revoke_sec

    @override
    async def on_partitions_revoked(self, revoked):
        self.calls.append(("revoked", set(revoked)))
        await asyncio.sleep(self.revoke_sec)

    @override
    def on_partitions_assigned(self, assigned):
        self.calls.append(("assigned", set(assigned)))


@pytest.fixture
def kafka():
    return FakeKafka({"topic": 2})


async def member(kafka, listener=None):
    consumer = FakeKafkaConsumer(kafka=kafka, group_id="group", auto_offset_reset="earliest")
    consumer.subscribe(["topic"], listener)
    await consumer.start()
    return consumer


class TestRecords:
    def test_append_returns_what_will_be_delivered(self, kafka):
        """Key, value, headers, offset and timestamp are the consumer's record."""
        record = kafka.append("topic", 1, b"v", key=b"key", headers=[("h", b"1")], offset=7, timestamp=5)

        async def main():
            consumer = await member(kafka)
            assert await consumer.getone() is record
            await consumer.stop()

        run_virtual(main())
        assert (record.topic, record.partition, record.offset, record.timestamp) == ("topic", 1, 7, 5)
        assert (record.key, record.value, record.headers) == (b"key", b"v", (("h", b"1"),))
        assert (record.serialized_key_size, record.serialized_value_size) == (3, 1)

    def test_offsets_go_up(self, kafka):
        """Without an offset the next one is taken, also after a gap; one that is taken is refused."""
        assert [kafka.append("topic", 0, b"", offset=offset).offset for offset in (None, 5, None)] == [0, 5, 6]
        with pytest.raises(ValueError, match=r"offset 6 of topic\[0\] is taken: the next one is 7"):
            kafka.append("topic", 0, b"", offset=6)

    def test_kafka_outlives_event_loops(self, kafka):
        """A consumer in a second loop goes on at the offset that one in the first loop has committed."""
        for _ in range(4):
            kafka.append("topic", 0, b"")

        async def read_two():
            consumer = await member(kafka)
            records = [await consumer.getone() for _ in range(2)]
            await consumer.commit()
            await consumer.stop()
            return [record.offset for record in records]

        assert run_virtual(read_two()) == [0, 1]
        assert run_virtual(read_two()) == [2, 3]


class TestCommits:
    def test_are_noted_in_order(self, kafka):
        """`commits` has each accepted commit with its group, offsets and metadata."""

        async def main():
            consumer = await member(kafka)
            await consumer.commit({ZERO: 1})
            await consumer.commit({ZERO: (2, "note"), ONE: 1})
            await consumer.stop()

        run_virtual(main())
        assert kafka.commits == [
            ("group", {ZERO: OffsetAndMetadata(1, "")}),
            ("group", {ZERO: OffsetAndMetadata(2, "note"), ONE: OffsetAndMetadata(1, "")}),
        ]
        assert kafka.groups["group"].committed == kafka.commits[-1][1]

    def test_hook_sees_each_and_can_refuse_it(self, kafka):
        """`on_commit` is called for each commit that arrives; its exception is the answer."""
        seen = []

        def watch(group_id, offsets):
            seen.append((group_id, dict(offsets)))
            if offsets[ZERO].metadata:
                raise OffsetMetadataTooLargeError

        kafka.on_commit = watch

        async def main():
            consumer = await member(kafka)
            await consumer.commit({ZERO: 1})
            with pytest.raises(OffsetMetadataTooLargeError):
                await consumer.commit({ZERO: (2, "much")})
            await consumer.stop()

        run_virtual(main())
        assert [offsets[ZERO].offset for _, offsets in seen] == [1, 2]
        assert len(kafka.commits) == 1

    def test_fail_as_often_as_told(self, kafka):
        """After n failures the next commit is accepted."""
        kafka.fail_commits(OffsetMetadataTooLargeError(), times=2)

        async def main():
            consumer = await member(kafka)
            for _ in range(2):
                with pytest.raises(OffsetMetadataTooLargeError):
                    await consumer.commit({ZERO: 1})
            await consumer.commit({ZERO: 1})
            await consumer.stop()

        run_virtual(main())

    def test_answer_that_a_rebalance_is_under_way(self, kafka):
        """As in aiokafka: CommitFailedError, and the consumer joins the rebalance."""
        listener = Noting()
        kafka.fail_commits(RebalanceInProgressError())

        async def main():
            consumer = await member(kafka, listener)
            with pytest.raises(CommitFailedError):
                await consumer.commit({ZERO: 1})
            await asyncio.sleep(1)
            await consumer.commit({ZERO: 1})
            await consumer.stop()

        run_virtual(main())
        assert [what for what, _ in listener.calls] == ["revoked", "assigned"] * 2

    def test_retriable_failures_are_tried_again_for_ever(self, kafka):
        """As in aiokafka: while the broker is down `commit` does not return; it succeeds when the broker is back."""
        kafka.fail_commits(GroupCoordinatorNotAvailableError(), times=None)

        async def main():
            consumer = await member(kafka)
            pending = asyncio.create_task(consumer.commit({ZERO: 1}))
            await asyncio.sleep(3600)
            assert not pending.done()
            kafka.fail_commits(GroupCoordinatorNotAvailableError(), times=0)
            await pending
            await consumer.stop()

        run_virtual(main())
        assert kafka.groups["group"].committed[ZERO].offset == 1

    def test_retried_across_a_rebalance_moves_another_members_offset_back(self, kafka):
        """The hazard itself: a retried commit is sent under the new generation."""

        async def main():
            first = await member(kafka)
            kafka.fail_commits(GroupCoordinatorNotAvailableError(), times=None)
            stale = asyncio.create_task(first.commit({ZERO: 5, ONE: 5}))
            await asyncio.sleep(1)
            second = await member(kafka)
            kafka.fail_commits(GroupCoordinatorNotAvailableError(), times=0)
            (taken,) = second.assignment()
            await second.commit({taken: 90})
            await stale
            assert kafka.groups["group"].committed[taken].offset == 5
            await first.stop()
            await second.stop()

        run_virtual(main())

    def test_held_until_the_block_ends(self, kafka):
        """A held commit is in flight: neither accepted nor failed."""

        async def main():
            consumer = await member(kafka)
            with kafka.hold_commits() as held:
                pending = asyncio.create_task(consumer.commit({ZERO: 1}))
                await held.wait()
                await asyncio.sleep(60)
                assert not pending.done()
                assert kafka.commits == []
            await pending
            assert len(kafka.commits) == 1
            await consumer.stop()

        run_virtual(main())

    def test_held_across_a_rebalance_are_fenced(self, kafka):
        """A request that was sent before the rebalance has the old generation."""

        async def main():
            consumer = await member(kafka)
            with kafka.hold_commits() as held:
                pending = asyncio.create_task(consumer.commit({ZERO: 1}))
                await held.wait()
                kafka.groups["group"].rebalance()
                await asyncio.sleep(1)
            with pytest.raises(CommitFailedError):
                await pending
            await asyncio.sleep(1)
            await consumer.commit({ZERO: 2})
            await consumer.stop()

        run_virtual(main())
        assert [offsets[ZERO].offset for _, offsets in kafka.commits] == [2]

    def test_cancelled_while_held_still_arrives_and_first(self, kafka):
        """A commit that is cancelled after it was sent is accepted all the same, before a later one."""

        async def main():
            consumer = await member(kafka)
            with kafka.hold_commits() as held:
                abandoned = asyncio.create_task(consumer.commit({ZERO: 1}))
                await held.wait()
                abandoned.cancel()
                later = asyncio.create_task(consumer.commit({ZERO: 2}))
                await asyncio.sleep(1)
                assert abandoned.cancelled()
            await later
            await consumer.stop()

        run_virtual(main())
        assert [offsets[ZERO].offset for _, offsets in kafka.commits] == [1, 2]


class TestGroups:
    def test_rebalance_on_demand(self, kafka):
        """`groups[id].rebalance()` revokes and assigns all partitions anew, with the same members."""
        listener = Noting()

        async def main():
            consumer = await member(kafka, listener)
            kafka.groups["group"].rebalance()
            await asyncio.sleep(1)
            await consumer.stop()

        run_virtual(main())
        assert listener.calls == [
            ("revoked", set()),
            ("assigned", {ZERO, ONE}),
            ("revoked", {ZERO, ONE}),
            ("assigned", {ZERO, ONE}),
        ]

    def test_waits_for_the_slowest_revoke_callback(self, kafka):
        """No member is assigned a partition before all have given up theirs."""

        async def main():
            first = await member(kafka, Noting(revoke_sec=5))
            second = await member(kafka)
            assert asyncio.get_running_loop().time() == pytest.approx(10)  # its first join, and that of the second
            assert len(first.assignment()) == len(second.assignment()) == 1
            await first.stop()
            await second.stop()

        run_virtual(main())

    def test_member_dropped_during_its_revoke_callback(self, kafka):
        """The other members go on without it, and its commit at the end of the callback is refused."""
        outcome = []

        class CommitsLate(Noting):
            @override
            async def on_partitions_revoked(self, revoked):
                await super().on_partitions_revoked(revoked)
                if revoked:
                    outcome.append(await asyncio.gather(first.commit({ZERO: 1}), return_exceptions=True))

        async def main():
            nonlocal first
            listener = CommitsLate(revoke_sec=5)
            first.subscribe(["topic"], listener)
            await first.start()
            starting = asyncio.create_task(member(kafka))
            await asyncio.sleep(1)
            first.lose_membership()
            second = await starting
            assert asyncio.get_running_loop().time() == pytest.approx(6)
            assert second.assignment() == {ZERO, ONE}
            await asyncio.sleep(60)
            assert len(first.assignment()) == len(second.assignment()) == 1
            await first.stop()
            await second.stop()

        first = FakeKafkaConsumer(kafka=kafka, group_id="group")
        run_virtual(main())
        assert [type(error) for (error,) in outcome] == [CommitFailedError]
        assert kafka.commits == []

    def test_refused_commit_makes_a_member_join_again_at_once(self, kafka):
        """The member learns that at once, not by a heartbeat."""
        listener = Noting()

        async def main():
            consumer = await member(kafka, listener)
            consumer.lose_membership()
            with pytest.raises(CommitFailedError):
                await consumer.commit({ZERO: 1})
            await asyncio.sleep(0.01)
            assert len(kafka.groups["group"].members) == 1
            await consumer.commit({ZERO: 1})
            await consumer.stop()

        run_virtual(main())
        assert [what for what, _ in listener.calls] == ["revoked", "assigned"] * 2

    def test_member_dropped_while_it_waits_for_the_others(self, kafka):
        """It joins again with a new member id, and is assigned its share together with the others."""

        async def main():
            first = await member(kafka, Noting(revoke_sec=5))
            second = FakeKafkaConsumer("topic", kafka=kafka, group_id="group")
            starting = asyncio.create_task(second.start())
            await asyncio.sleep(1)
            second.lose_membership()
            await starting
            assert len(first.assignment()) == len(second.assignment()) == 1
            await first.stop()
            await second.stop()

        run_virtual(main())

    def test_cancelled_stop_leaves_a_ghost(self, kafka):
        """The hazard itself: the member stays in the group, and a second stop does nothing."""

        async def main():
            consumer = await member(kafka)
            stopping = asyncio.create_task(consumer.stop())
            await asyncio.sleep(0)
            stopping.cancel()
            await asyncio.wait([stopping])
            await consumer.stop()

        run_virtual(main())
        assert len(kafka.groups["group"].members) == 1

    def test_stop_waits_for_a_rebalance_that_is_under_way(self, kafka):
        """It leaves the group when the callbacks have ended."""
        listener = Noting(revoke_sec=5)

        async def main():
            consumer = await member(kafka, listener)
            kafka.groups["group"].rebalance()
            await asyncio.sleep(1)
            await consumer.stop()
            assert asyncio.get_running_loop().time() == pytest.approx(10)

        run_virtual(main())
        assert [what for what, _ in listener.calls] == ["revoked", "assigned"] * 2
        assert not kafka.groups["group"].members
