"""Which subscriber gets a slot that becomes free, against a brute-force record of waits and hand-overs.

Invariants: I20.
"""

import asyncio
import dataclasses
import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faststream_concurrent_kafka._record.slots import Slots
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.world import play


@dataclasses.dataclass(frozen=True)
class Subscriber:
    """When the records of a subscriber arrive, how long each is handled, and which are cancelled while they wait."""

    arrivals: list[float]
    handling: list[float]
    pool: int | None
    cancelled: set[int]


SUBSCRIBERS = st.lists(
    st.builds(
        Subscriber,
        arrivals=st.lists(st.sampled_from([0, 0, 0, 1, 2.5, 7, 7.01]), max_size=12).map(sorted),
        handling=st.lists(st.sampled_from([0, 0.5, 1, 5, 5.3]), min_size=1, max_size=4),
        pool=st.sampled_from([None, None, 0, 1]),
        cancelled=st.sets(st.integers(0, 11), max_size=2),
    ),
    min_size=1,
    max_size=5,
)


class Holder:
    """A record, as far as it holds a slot."""

    slot = None


class Account:
    """Fetchers and records of some subscribers on one `Slots`, and how often each was served."""

    def __init__(self, limit, pool_limits, subscribers):
        self.slots = Slots(limit, limit or 1000)
        self.limit = limit or 1000
        self.pool_limits = pool_limits
        self.subscribers = subscribers
        pools = [self.slots.pool(number, most) for number, most in enumerate(pool_limits)]
        self.shares = [self.slots.share(None if each.pool is None else pools[each.pool]) for each in subscribers]
        self.running: Counter[int] = Counter()
        self.waiting: Counter[int] = Counter()
        # For each subscriber that waits and holds no slot: how often each other one was served meanwhile.
        self.served: dict[int, Counter[int]] = {}
        self.delays: list[list[float]] = [[] for _ in subscribers]
        self.handled: Counter[int] = Counter()
        self.begun: set[asyncio.Task[None] | None] = set()
        # When a slot of each pool was given back.
        self.freed_at: dict[int | None, float] = {}

    def in_pool(self, number):
        return [n for n, each in enumerate(self.subscribers) if each.pool == self.subscribers[number].pool]

    def free_for(self, number):
        """Return the number of free slots in its pool."""
        pool = self.subscribers[number].pool
        return 1000 if pool is None else self.pool_limits[pool] - sum(self.running[n] for n in self.in_pool(number))

    def note_start(self, number):
        now = asyncio.get_running_loop().time()
        self.served.pop(number, None)
        self.running[number] += 1
        assert sum(self.running.values()) <= self.limit
        for pool, most in enumerate(self.pool_limits):
            assert sum(self.running[n] for n, each in enumerate(self.subscribers) if each.pool == pool) <= most
        for waiting, served in self.served.items():
            if self.running[waiting]:
                served.clear()
            elif self.free_for(waiting) > 0 and self.freed_at.get(self.subscribers[waiting].pool, -1) < now:
                # At this very moment, the slot may have been handed over before that of the pool was given back.
                served[number] += 1
                assert served[number] <= 1, f"{number} was served twice while {waiting} had nothing"

    async def own(self, number, holder, arrived, handling):
        loop, share = asyncio.get_running_loop(), self.shares[number]
        self.waiting[number] += 1
        self.served.setdefault(number, Counter())
        try:
            if holder.slot is not True:
                await holder.slot
        except asyncio.CancelledError:
            self.waiting[number] -= 1
            if not self.waiting[number]:
                self.served.pop(number, None)
            share.give_back(holder)
            return
        self.waiting[number] -= 1
        self.begun.add(asyncio.current_task())
        self.note_start(number)
        if self.waiting[number]:
            self.served[number] = Counter()
        self.delays[number].append(loop.time() - arrived)
        await asyncio.sleep(handling)
        self.running[number] -= 1
        self.freed_at[self.subscribers[number].pool] = loop.time()
        self.handled[number] += 1
        share.give_back(holder)

    async def fetch(self, number):
        loop, share, subscriber, tasks = asyncio.get_running_loop(), self.shares[number], self.subscribers[number], []
        for index, arrival in enumerate(subscriber.arrivals):
            while share.is_full:
                await self.slots.wait_for_change(1)
            await asyncio.sleep(max(0, arrival - loop.time()))
            holder = Holder()
            share.take(holder)
            handling = subscriber.handling[index % len(subscriber.handling)]
            tasks.append(asyncio.create_task(self.own(number, holder, arrival, handling)))
            if index in subscriber.cancelled:
                loop.call_later(0.3, self.cancel, tasks[-1])
            if index % 3 == 2:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    def cancel(self, task):
        if task not in self.begun:
            task.cancel()

    async def watch(self):
        """Check that no more slots are free than are left for other subscribers; tick."""
        loop, others = asyncio.get_running_loop(), len(self.subscribers) - 1
        while True:
            # At no moment of a hand-over.
            await asyncio.sleep(0.0937)
            if loop.time() > self.slots.ticks + 1:
                self.slots.tick()
            free = self.limit - sum(self.running.values())
            waiting = [number for number, count in self.waiting.items() if count and self.free_for(number) > others]
            assert free <= min(others, self.limit // 2) or not waiting, f"{free} slots are free, but {waiting} wait"

    async def play(self):
        async with asyncio.timeout(1000):
            watcher = asyncio.create_task(self.watch())
            await asyncio.gather(*(self.fetch(number) for number in range(len(self.subscribers))))
            watcher.cancel()
            await asyncio.wait({watcher})
            assert watcher.cancelled(), watcher.exception()
        assert self.slots.reserved == 0
        assert all(share.reserved == share.running == 0 for share in self.shares)
        while self.slots.overall.active:
            self.slots.tick()
        holders = [Holder() for _ in range(self.limit + 1)]
        for holder in holders:
            self.slots.unshared.take(holder)
        *first, last = holders
        assert all(holder.slot is True for holder in first)
        assert isinstance(last.slot, asyncio.Future) == (self.slots.overall.limit == self.limit)


@given(limit=st.integers(0, 4), pool_limits=st.tuples(st.integers(1, 3), st.integers(1, 3)), subscribers=SUBSCRIBERS)
def test_who_holds_nothing_waits_for_one_turn_of_each_other_at_most(limit, pool_limits, subscribers):
    """No slot is idle, no limit is exceeded, a cancelled wait loses no slot, and all records are handled."""
    run_virtual(Account(limit, pool_limits, subscribers).play())


def test_a_cancelled_wait_gives_no_slot_back():
    """`released` tells whether passes end: it counts slots, and not places in line that were given up."""

    async def scenario():
        slots = Slots(1, 1)
        share, first, second = slots.share(), Holder(), Holder()
        share.take(first)
        share.take(second)
        share.give_back(second)
        assert (share.reserved, slots.released) == (1, 0)
        share.give_back(first)
        assert (share.reserved, slots.released) == (0, 1)

    run_virtual(scenario())


def takes(share, count):
    """Take a slot, or a place in line, for each of `count` records; return their holders."""
    holders = [Holder() for _ in range(count)]
    for holder in holders:
        share.take(holder)
    return holders


def test_a_slot_goes_to_the_subscriber_that_holds_the_fewest():
    """Also if another one has waited longer."""

    async def scenario():
        slots = Slots(4, 4)
        busy, other = slots.share(), slots.share()
        held, first = takes(busy, 3), takes(other, 1)
        (behind,), (next_one,) = takes(busy, 1), takes(other, 1)
        assert first[0].slot is True
        busy.give_back(held[0])
        assert (behind.slot.done(), next_one.slot.done()) == (False, True)

    run_virtual(scenario())


def test_among_equals_a_slot_goes_to_the_one_that_was_not_given_one_for_longest():
    """A subscriber with many waiting records does not get two slots in a row."""

    async def scenario():
        slots = Slots(4, 4)
        many, other, third = slots.share(), slots.share(), slots.share()
        (held,), _, (last, _) = takes(many, 1), takes(other, 1), takes(third, 2)
        (first, second), (next_one,) = takes(many, 2), takes(other, 1)
        third.give_back(last)
        assert first.slot.done()
        many.give_back(held)
        assert (second.slot.done(), next_one.slot.done()) == (False, True)

    run_virtual(scenario())


def p99(values):
    return statistics.quantiles(values, n=100)[98]


@pytest.mark.parametrize("others", [1, 3])
def test_the_wait_of_a_fast_subscriber_beside_slow_ones(others):
    """Its 99th percentile: one release until the next slot, however many records others have queued."""
    slow = Subscriber(arrivals=[0] * 120, handling=[5, 5.1, 4.9, 5.05], pool=None, cancelled=set())
    fast = Subscriber(arrivals=[1 + number / 2 for number in range(60)], handling=[0], pool=None, cancelled=set())
    account = Account(20, (), [slow] * others + [fast])
    run_virtual(account.play())
    assert len(account.delays[-1]) == 60
    assert p99(account.delays[-1]) < 5.1
    # Once it has had a slot, one is left for it.
    assert max(account.delays[-1][10:]) < 0.01


def test_with_a_limit_for_the_slow_ones_the_fast_one_never_waits():
    """The rest of the overall limit is for the other subscribers."""
    slow = Subscriber(arrivals=[0] * 60, handling=[5], pool=0, cancelled=set())
    fast = Subscriber(arrivals=[1 + number / 2 for number in range(60)], handling=[0], pool=None, cancelled=set())
    account = Account(20, (19,), [slow, slow, fast])
    run_virtual(account.play())
    assert p99(account.delays[-1]) < 0.01
    assert account.handled == {0: 60, 1: 60, 2: 60}


def test_a_fast_subscriber_gets_through_its_backlog_beside_a_slow_one():
    """Its next record waits before its slot is free, so it gets more than one record per record of the other."""
    slow = Subscriber(arrivals=[0] * 120, handling=[5, 5.1, 4.9, 5.05], pool=None, cancelled=set())
    fast = Subscriber(arrivals=[1] * 1000, handling=[0], pool=None, cancelled=set())
    account = Account(20, (), [slow, fast])
    run_virtual(account.play())
    assert max(account.delays[1]) < 5.1


def test_where_both_have_work_both_have_half_of_the_slots():
    """Up to one slot more, for the one that came first."""
    first = Subscriber(arrivals=[0] * 400, handling=[1], pool=None, cancelled=set())
    second = Subscriber(arrivals=[5] * 400, handling=[1], pool=None, cancelled=set())
    account = Account(10, (), [first, second])

    async def main():
        playing = asyncio.create_task(account.play())
        await asyncio.sleep(25.5)
        assert sorted(account.running.values()) in ([5, 5], [4, 6])
        await playing

    run_virtual(main())


def test_a_burst_of_retries_of_one_does_not_keep_the_other_from_its_slots():
    """All retries wait for a slot at once, before the other's next record."""

    async def scenario(world):
        other, started = world.add_source(), []

        async def slow(_raw):
            await asyncio.sleep(5)

        async def fast(_raw):
            started.append(world.handler.now())

        # Records that wait for their order, or come back from a backoff.
        for _ in range(200):
            world.handle(slow)
        await asyncio.sleep(1)
        assert world.source.share.is_full
        while not other.share.is_full:
            world.handle(fast, source=other)
        await world.until(lambda: other.in_flight == 0)
        assert started == pytest.approx([5, 5])

    play(scenario, concurrency_limit=4)
