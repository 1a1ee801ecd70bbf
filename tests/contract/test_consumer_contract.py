"""The behaviour of a consumer that the library relies on, of aiokafka on a real broker and of the fake."""

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalOperation, IllegalStateError

from tests.contract.clusters import Recorder, at_once, partitions_of, take, turns, values, within


FIVE = [b"0", b"1", b"2", b"3", b"4"]
NOWHERE = TopicPartition("\0none", 0)


class TestDelivery:
    async def test_partition_order(self, cluster):
        """Each partition's records come in the order of their offsets, none missing, none twice."""
        topic = await cluster.topic(2)
        for partition in (0, 1):
            await cluster.produce(topic, partition, *FIVE, *FIVE)
        records = await take(await cluster.consumer(topic), 20)
        for partition in (0, 1):
            assert [record.offset for record in records if record.partition == partition] == list(range(10))

    async def test_getone_does_not_suspend_while_records_are_buffered(self, cluster):
        """Once a fetch has come in, `getone` never gives the event loop a turn."""
        topic = await cluster.topic()
        await cluster.produce(topic, 0, *FIVE)
        consumer = await cluster.consumer(topic)
        await take(consumer, 1)
        assert [at_once(consumer.getone()).value for _ in range(4)] == FIVE[1:]

    async def test_pending_getone_gets_what_comes_later(self, cluster):
        """`getone` waits for a record that is produced after the call."""
        topic = await cluster.topic()
        consumer = await cluster.consumer(topic)
        pending = asyncio.create_task(consumer.getone())
        await turns()
        assert not pending.done()
        await cluster.produce(topic, 0, b"late")
        assert (await within(pending)).value == b"late"

    async def test_getone_of_chosen_partitions(self, cluster):
        """`getone(tp)` returns records of that partition alone and leaves the others where they are."""
        topic = await cluster.topic(2)
        zero, one = partitions_of(topic, 0, 1)
        await cluster.produce(topic, 0, *FIVE)
        await cluster.produce(topic, 1, b"other")
        consumer = await cluster.consumer(topic)
        assert (await within(consumer.getone(one))).value == b"other"
        assert await consumer.position(zero) == 0
        assert values(await take(consumer, 5)) == FIVE

    async def test_getmany_batches(self, cluster):
        """`getmany(max_records=n)` returns at most n records, over all partitions, and goes on after them."""
        topic = await cluster.topic(2)
        for partition in (0, 1):
            await cluster.produce(topic, partition, *FIVE)
        consumer = await cluster.consumer(topic)
        batches = []
        while sum(map(len, batches)) < 10:
            batch = await within(consumer.getmany(timeout_ms=1000, max_records=3))
            batches.append([record for records in batch.values() for record in records])
        assert max(map(len, batches)) == 3
        for partition in (0, 1):
            assert values(r for batch in batches for r in batch if r.partition == partition) == FIVE

    async def test_getmany_returns_empty_after_its_timeout(self, cluster):
        """Without records `getmany` returns `{}`, at once or after `timeout_ms`."""
        consumer = await cluster.consumer(await cluster.topic())
        assert at_once(consumer.getmany(timeout_ms=0)) == {}
        assert await within(consumer.getmany(timeout_ms=50)) == {}

    async def test_getmany_refuses_batches_of_none(self, cluster):
        """`max_records` has to be positive."""
        consumer = await cluster.consumer(await cluster.topic())
        with pytest.raises(ValueError, match="max_records"):
            await consumer.getmany(max_records=0)

    async def test_getmany_of_a_partition_that_does_not_exist(self, cluster):
        """The keep-alive fetches nothing, suspends nowhere, and discards nothing of what is buffered."""
        topic = await cluster.topic()
        await cluster.produce(topic, 0, *FIVE)
        consumer = await cluster.consumer(topic)
        await take(consumer, 1)
        for _ in range(3):
            assert at_once(consumer.getmany(NOWHERE, timeout_ms=0)) == {}
        assert [at_once(consumer.getone()).value for _ in range(4)] == FIVE[1:]

    @pytest.mark.apache
    async def test_gap_in_the_offsets(self, cluster):
        """An offset without a record is passed over, and the position is one past the record before it or after."""
        topic = await cluster.topic()
        await cluster.produce_with_gap_behind(topic, b"before the gap")
        consumer = await cluster.consumer(topic)
        assert [record.offset for record in await take(consumer, 2)] == [0, 2]
        assert await consumer.position(TopicPartition(topic, 0)) == 3

    @pytest.mark.parametrize(("reset", "expected"), [("earliest", b"old"), ("latest", b"new")])
    async def test_auto_offset_reset(self, cluster, reset, expected):
        """Without a committed offset, reading begins at the first record or behind the last one."""
        topic = await cluster.topic()
        await cluster.produce(topic, 0, b"old")
        consumer = await cluster.consumer(topic, auto_offset_reset=reset)
        await within(consumer.position(TopicPartition(topic, 0)))
        await cluster.produce(topic, 0, b"new")
        assert values(await take(consumer, 1)) == [expected]


class TestPositionAndSeek:
    async def test_position_is_the_next_record(self, cluster):
        """The position is one past the last record returned, whatever is buffered."""
        topic = await cluster.topic()
        tp = TopicPartition(topic, 0)
        await cluster.produce(topic, 0, *FIVE)
        consumer = await cluster.consumer(topic)
        assert await within(consumer.position(tp)) == 0
        await take(consumer, 2)
        assert await consumer.position(tp) == 2

    async def test_seek_back_redelivers(self, cluster):
        """After `seek` the records from that offset on come again, buffered ones are dropped."""
        topic = await cluster.topic()
        await cluster.produce(topic, 0, *FIVE)
        consumer = await cluster.consumer(topic)
        await take(consumer, 3)
        consumer.seek(TopicPartition(topic, 0), 1)
        assert await consumer.position(TopicPartition(topic, 0)) == 1
        assert values(await take(consumer, 4)) == FIVE[1:]

    async def test_seek_and_position_need_an_assigned_partition(self, cluster):
        """Elsewhere they raise IllegalStateError, and below 0 ValueError."""
        topic = await cluster.topic()
        consumer = await cluster.consumer(topic)
        with pytest.raises(IllegalStateError):
            consumer.seek(NOWHERE, 0)
        with pytest.raises(IllegalStateError):
            await consumer.position(NOWHERE)
        with pytest.raises(ValueError, match="positive"):
            consumer.seek(TopicPartition(topic, 0), -1)


class TestCommit:
    async def test_without_offsets_commits_the_positions(self, cluster):
        """`commit()` commits what was returned, not what is buffered."""
        topic = await cluster.topic()
        await cluster.produce(topic, 0, *FIVE)
        consumer = await cluster.consumer(topic)
        assert not await consumer.committed(TopicPartition(topic, 0))
        await take(consumer, 2)
        await within(consumer.commit())
        assert await consumer.committed(TopicPartition(topic, 0)) == 2

    @pytest.mark.parametrize("entry", [3, (3, ""), (3, "note")])
    async def test_of_given_offsets(self, cluster, entry):
        """An offset, or an offset with metadata, is committed as given; the position stays."""
        topic = await cluster.topic()
        tp = TopicPartition(topic, 0)
        await cluster.produce(topic, 0, *FIVE)
        consumer = await cluster.consumer(topic)
        await take(consumer, 5)
        await within(consumer.commit({tp: entry}))
        assert await consumer.committed(tp) == 3
        assert await consumer.position(tp) == 5

    async def test_goes_back_when_told(self, cluster):
        """A commit below the committed offset is accepted."""
        topic = await cluster.topic()
        tp = TopicPartition(topic, 0)
        consumer = await cluster.consumer(topic)
        await within(consumer.commit({tp: 3}))
        await within(consumer.commit({tp: 1}))
        assert await consumer.committed(tp) == 1

    async def test_of_an_unassigned_partition_fails_as_a_whole(self, cluster):
        """If one partition is not assigned, no offset of the call is committed."""
        topic = await cluster.topic()
        tp = TopicPartition(topic, 0)
        consumer = await cluster.consumer(topic)
        await within(consumer.commit({tp: 1}))
        with pytest.raises(IllegalStateError):
            await consumer.commit({tp: 2, TopicPartition(topic, 7): 2})
        assert await consumer.committed(tp) == 1

    async def test_of_nothing_is_an_error(self, cluster):
        """`commit({})` raises ValueError."""
        consumer = await cluster.consumer(await cluster.topic())
        with pytest.raises(ValueError, match=r"\{\}"):
            await consumer.commit({})

    async def test_before_anything_is_assigned(self, cluster):
        """Subscribed but not started: IllegalStateError."""
        consumer = await cluster.consumer(await cluster.topic(), started=False)
        with pytest.raises(IllegalStateError):
            await consumer.commit()

    async def test_needs_a_group(self, cluster):
        """Without a group, `commit` and `committed` raise an error."""
        topic = await cluster.topic()
        consumer = await cluster.consumer(topic, group_id=None)
        assert consumer.assignment() == {TopicPartition(topic, 0)}
        with pytest.raises(IllegalOperation):
            await consumer.commit()
        with pytest.raises(IllegalOperation):
            await consumer.committed(TopicPartition(topic, 0))

    async def test_after_losing_membership(self, cluster):
        """A member that the broker has dropped gets CommitFailedError, moves nothing, and joins again."""
        topic = await cluster.topic()
        tp = TopicPartition(topic, 0)
        listener = Recorder()
        await cluster.produce(topic, 0, *FIVE)
        # Its heartbeats are too far apart to show that before the commit does.
        consumer = await cluster.consumer(topic, listener=listener, heartbeat_interval_ms=60_000)
        await listener.until_assigned()
        await take(consumer, 4)
        await within(consumer.commit({tp: 2}))
        await cluster.drop_from_group(consumer)
        with pytest.raises(CommitFailedError):
            await within(consumer.commit({tp: 4}))
        assert await consumer.committed(tp) == 2
        await listener.until_assigned()
        assert listener.calls[-2:] == [("revoked", {tp}), ("assigned", {tp})]
        assert values(await take(consumer, 3)) == FIVE[2:]
        await within(consumer.commit({tp: 5}))
        assert await consumer.committed(tp) == 5

    async def test_lost_membership_is_noticed_by_heartbeat(self, cluster):
        """A dropped member that commits nothing learns that by a heartbeat, and joins again."""
        topic = await cluster.topic()
        listener = Recorder()
        consumer = await cluster.consumer(topic, listener=listener)
        await listener.until_assigned()
        await cluster.drop_from_group(consumer)
        await listener.until_assigned()
        assert [what for what, _ in listener.calls] == ["revoked", "assigned"] * 2

    @pytest.mark.apache
    async def test_after_stop(self, cluster):
        """One that has left commits for an empty group only: with another member there, it is refused."""
        topic = await cluster.topic()
        tp = TopicPartition(topic, 0)
        first = await cluster.consumer(topic)
        await within(first.stop())
        await within(first.commit({tp: 1}))
        second = await cluster.consumer(topic)
        assert await second.committed(tp) == 1
        with pytest.raises(CommitFailedError):
            await within(first.commit({tp: 2}))
        assert await second.committed(tp) == 1


class TestPause:
    async def test_one_partition_alone(self, cluster):
        """A paused partition gives nothing, the others go on, and once it is resumed nothing is missing."""
        topic = await cluster.topic(2)
        zero, one = partitions_of(topic, 0, 1)
        for partition in (0, 1):
            await cluster.produce(topic, partition, *FIVE)
        consumer = await cluster.consumer(topic)
        await within(consumer.getone(zero))
        consumer.pause(zero)
        assert consumer.paused() == {zero}
        assert values(record for record in await take(consumer, 5) if record.partition == 1) == FIVE
        assert await within(consumer.getmany(timeout_ms=50)) == {}
        consumer.resume(zero)
        assert consumer.paused() == set()
        assert values(await take(consumer, 4)) == FIVE[1:]
        assert await consumer.position(one) == 5

    async def test_while_getone_is_pending(self, cluster):
        """A `getone` called before the pause doesn't return the paused partition's records either."""
        topic = await cluster.topic(2)
        zero, _ = partitions_of(topic, 0, 1)
        consumer = await cluster.consumer(topic)
        pending = asyncio.create_task(consumer.getone())
        await turns()
        consumer.pause(zero)
        await cluster.produce(topic, 0, b"paused")
        await cluster.produce(topic, 1, b"free")
        assert (await within(pending)).value == b"free"
        consumer.resume(zero)
        assert values(await take(consumer, 1)) == [b"paused"]

    async def test_needs_an_assigned_partition(self, cluster):
        """Elsewhere `pause` and `resume` raise IllegalStateError."""
        consumer = await cluster.consumer(await cluster.topic())
        with pytest.raises(IllegalStateError):
            consumer.pause(NOWHERE)
        with pytest.raises(IllegalStateError):
            consumer.resume(NOWHERE)

    async def test_twice_is_once(self, cluster):
        """Pausing what is paused, and resuming what isn't, changes nothing."""
        topic = await cluster.topic()
        tp = TopicPartition(topic, 0)
        consumer = await cluster.consumer(topic)
        consumer.resume(tp)
        consumer.pause(tp)
        consumer.pause(tp)
        consumer.resume(tp)
        assert consumer.paused() == set()

    async def test_lost_at_a_rebalance(self, cluster):
        """A new assignment is not paused, not even on a partition that stays."""
        topic = await cluster.topic(1)
        tp = TopicPartition(topic, 0)
        listener = Recorder()
        consumer = await cluster.consumer(topic, listener=listener)
        await listener.until_assigned()
        consumer.pause(tp)
        await cluster.drop_from_group(consumer)
        await listener.until_assigned()
        assert consumer.assignment() == {tp}
        assert consumer.paused() == set()


class TestRebalance:
    async def test_first_join(self, cluster):
        """The listener hears of an empty revocation, then of the assignment."""
        topic = await cluster.topic(2)
        listener = Recorder()
        consumer = await cluster.consumer(topic, listener=listener)
        await listener.until_assigned()
        everything = set(partitions_of(topic, 0, 1))
        assert listener.calls == [("revoked", set()), ("assigned", everything)]
        assert consumer.assignment() == everything

    async def test_join_of_another_revokes_everything(self, cluster):
        """Eager: all is revoked, then shared out anew, half each."""
        topic = await cluster.topic(4)
        listener, other = Recorder(), Recorder()
        consumer = await cluster.consumer(topic, listener=listener)
        await listener.until_assigned()
        second = await cluster.consumer(topic, listener=other)
        await listener.until_assigned()
        await other.until_assigned()
        everything = set(partitions_of(topic, 0, 1, 2, 3))
        assert listener.calls[2:] == [("revoked", everything), ("assigned", set(consumer.assignment()))]
        assert consumer.assignment() | second.assignment() == everything
        assert len(consumer.assignment()) == len(second.assignment()) == 2

    async def test_member_without_a_share(self, cluster):
        """With fewer partitions than members one is assigned nothing, and its listener is called."""
        topic = await cluster.topic(1)
        listeners = [Recorder(), Recorder()]
        first = await cluster.consumer(topic, listener=listeners[0])
        await listeners[0].until_assigned()
        second = await cluster.consumer(topic, listener=listeners[1])
        for listener in listeners:
            await listener.until_assigned()
        assert sorted(len(each.assignment()) for each in (first, second)) == [0, 1]
        assert sorted(len(listener.calls[-1][1]) for listener in listeners) == [0, 1]

    async def test_retained_partitions_go_back_to_the_committed_offset(self, cluster):
        """What was delivered and not committed is delivered again, to the same member too."""
        topic = await cluster.topic(2)
        for partition in (0, 1):
            await cluster.produce(topic, partition, *FIVE)
        listener = Recorder()
        consumer = await cluster.consumer(topic, listener=listener)
        await take(consumer, 10)
        await within(consumer.commit(dict.fromkeys(partitions_of(topic, 0, 1), 3)))
        await listener.until_assigned()
        second = await cluster.consumer(topic)
        await listener.until_assigned()
        for each in (consumer, second):
            assert [record.offset for record in await take(each, 2)] == [3, 4]

    async def test_commit_inside_the_revoke_callback(self, cluster):
        """It is accepted, and the next owner begins there."""
        topic = await cluster.topic(2)
        both = partitions_of(topic, 0, 1)
        for partition in (0, 1):
            await cluster.produce(topic, partition, *FIVE)

        async def commit():
            if consumer.assignment():
                await consumer.commit(dict.fromkeys(both, 4))

        listener = Recorder(during_revoke=commit)
        consumer = await cluster.consumer(topic, listener=listener, started=False)
        await within(consumer.start())
        await take(consumer, 10)
        second = await cluster.consumer(topic)
        for each in (consumer, second):
            assert [record.offset for record in await take(each, 1)] == [4]

    async def test_assignment_during_the_callbacks(self, cluster):
        """While it is revoked the old assignment is still there, and the new one is before its callback starts."""
        topic = await cluster.topic(2)
        seen = []

        async def look():
            seen.append(set(consumer.assignment()))

        listener = Recorder(during_revoke=look, during_assign=look)
        consumer = await cluster.consumer(topic, listener=listener, started=False)
        await within(consumer.start())
        await listener.until_assigned()
        await cluster.consumer(topic)
        await listener.until_assigned()
        everything = set(partitions_of(topic, 0, 1))
        assert seen == [set(), everything, everything, set(consumer.assignment())]

    async def test_records_are_held_back_while_the_revoke_callback_runs(self, cluster):
        """Neither `getone` nor `getmany` returns what is buffered, not even at once, before the new assignment."""
        topic = await cluster.topic(1)
        tp = TopicPartition(topic, 0)
        await cluster.produce(topic, 0, *FIVE)
        held_back = []

        async def try_to_read():
            if consumer.assignment():
                reads = [consumer.getone(), consumer.getmany(NOWHERE, timeout_ms=0)]
                held_back.extend(asyncio.create_task(read) for read in reads)
                await turns()
                held_back.append([task.done() for task in held_back])

        listener = Recorder(during_revoke=try_to_read)
        consumer = await cluster.consumer(topic, listener=listener, started=False)
        await within(consumer.start())
        await listener.until_assigned()
        await take(consumer, 3)
        await within(consumer.commit({tp: 1}))
        await cluster.drop_from_group(consumer)
        await listener.until_assigned()
        one, many, done_in_callback = held_back
        assert done_in_callback == [False, False]
        assert (await within(one)).offset == 1
        assert await within(many) == {}

    async def test_records_flow_before_the_assigned_callback_returns(self, cluster):
        """The callback can wait for a record of its new assignment, so nothing may be left to reset in it."""
        topic = await cluster.topic()
        await cluster.produce(topic, 0, *FIVE)
        first = asyncio.get_running_loop().create_future()

        async def wait_for_a_record():
            await within(asyncio.shield(first))

        listener = Recorder(during_assign=wait_for_a_record)
        consumer = await cluster.consumer(topic, listener=listener)
        first.set_result(await within(consumer.getone()))
        await listener.until_assigned()
        assert first.result().offset == 0

    async def test_pause_at_the_start_of_the_assigned_callback(self, cluster):
        """If pausing is the first that it does, no record comes before it resumes."""
        topic = await cluster.topic()
        await cluster.produce(topic, 0, *FIVE)
        early = []

        async def hold():
            consumer.pause(*consumer.assignment())
            pending = asyncio.create_task(consumer.getone())
            for tp in consumer.assignment():
                await consumer.committed(tp)
            await turns()
            early.append(pending.done())
            consumer.resume(*consumer.assignment())
            early.append((await within(pending)).offset)

        listener = Recorder(during_assign=hold)
        consumer = await cluster.consumer(topic, listener=listener, started=False)
        await within(consumer.start())
        await listener.until_assigned()
        assert early == [False, 0]

    async def test_failing_listener(self, cluster):
        """An error in a callback is logged, and the rebalance goes on."""
        topic = await cluster.topic()
        await cluster.produce(topic, 0, *FIVE)

        async def fail():
            raise RuntimeError("the listener's own")

        listener = Recorder(during_revoke=fail, during_assign=fail)
        consumer = await cluster.consumer(topic, listener=listener)
        assert values(await take(consumer, 5)) == FIVE

    async def test_listener_has_to_be_one(self, cluster):
        """Anything else is refused when subscribing."""
        consumer = await cluster.consumer(started=False)
        with pytest.raises(TypeError, match="ConsumerRebalanceListener"):
            consumer.subscribe([await cluster.topic()], listener=object())


class TestStop:
    async def test_leaves_the_group_without_the_revoke_callback(self, cluster):
        """The one that stays gets everything; the listener of the one that stops is not called."""
        topic = await cluster.topic(2)
        listener, other = Recorder(), Recorder()
        leaving = await cluster.consumer(topic, listener=listener)
        await listener.until_assigned()
        staying = await cluster.consumer(topic, listener=other)
        await listener.until_assigned()
        await other.until_assigned()
        before = list(listener.calls)
        await within(leaving.stop())
        await other.until_assigned()
        assert listener.calls == before
        assert staying.assignment() == set(partitions_of(topic, 0, 1))

    async def test_ends_pending_and_later_reads(self, cluster):
        """`getone` raises ConsumerStoppedError, pending or new; a pending `getmany` returns `{}`."""
        consumer = await cluster.consumer(await cluster.topic())
        one = asyncio.create_task(consumer.getone())
        many = asyncio.create_task(consumer.getmany(timeout_ms=60_000))
        await turns()
        await within(consumer.stop())
        with pytest.raises(ConsumerStoppedError):
            await within(one)
        assert await within(many) == {}
        with pytest.raises(ConsumerStoppedError):
            await consumer.getone()
        with pytest.raises(ConsumerStoppedError):
            await consumer.getmany()

    async def test_twice_is_once(self, cluster):
        """A second stop does nothing."""
        consumer = await cluster.consumer(await cluster.topic())
        await within(consumer.stop())
        await within(consumer.stop())


class TestManualAssignment:
    async def test_reads_what_it_was_given_from_the_committed_offset(self, cluster):
        """It commits like any other as long as the group has no members, and never hears of a rebalance."""
        topic = await cluster.topic(2)
        zero, one = partitions_of(topic, 0, 1)
        for partition in (0, 1):
            await cluster.produce(topic, partition, *FIVE)
        first = await cluster.consumer(started=False)
        first.assign([one])
        await within(first.start())
        assert values(await take(first, 5)) == FIVE
        await within(first.commit({one: 3}))
        with pytest.raises(IllegalStateError):
            await first.commit({zero: 1})
        second = await cluster.consumer(started=False)
        second.assign([one])
        await within(second.start())
        assert values(await take(second, 2)) == FIVE[3:]
        assert first.assignment() == second.assignment() == {one}

    async def test_is_not_disturbed_by_the_group(self, cluster):
        """A member that joins the same group neither takes partitions away nor stops the records."""
        topic = await cluster.topic()
        tp = TopicPartition(topic, 0)
        manual = await cluster.consumer(started=False)
        manual.assign([tp])
        await within(manual.start())
        member = await cluster.consumer(topic)
        await cluster.produce(topic, 0, *FIVE)
        assert values(await take(manual, 5)) == values(await take(member, 5)) == FIVE
        assert manual.assignment() == member.assignment() == {tp}
        with pytest.raises(CommitFailedError):
            await within(manual.commit({tp: 5}))

    async def test_excludes_a_subscription(self, cluster):
        """A consumer subscribes or is assigned to, with no listener in the second case."""
        topic = await cluster.topic()
        assigned = await cluster.consumer(started=False)
        assigned.assign([TopicPartition(topic, 0)])
        with pytest.raises(IllegalStateError):
            assigned.subscribe([topic], listener=Recorder())
        subscribed = await cluster.consumer(topic, started=False)
        with pytest.raises(IllegalStateError):
            subscribed.assign([TopicPartition(topic, 0)])
