"""The slots that limit how many passes run at once, and which subscriber gets one that becomes free (I20)."""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Literal, Protocol


# A slot; or a place in line, which is resolved when a slot is handed over.
Slot = Literal[True] | asyncio.Future[None]

# A subscriber counts as active for this many ticks (seconds) after its last record.
_ACTIVE_TICKS = 5


class Holder(Protocol):
    """What takes a slot for each pass: a record."""

    slot: Slot | None


class Pool:
    """One concurrency limit and the subscribers under it: the limit of all, or a router's own one inside it.

    An active subscriber may always use its part of the limit, which is the limit divided by the number of active
    subscribers. Beyond that it may use free slots, but leaves one for each active subscriber that holds none (at most
    half of the pool is left in this way).
    """

    __slots__ = ("active", "in_line", "limit", "most_reserved", "pools", "running")

    def __init__(self, limit: float, most_reserved: float) -> None:
        self.limit: float = limit
        self.most_reserved: float = most_reserved
        self.running: int = 0
        # How many records wait for a slot; those under a pool of their own are counted there.
        self.in_line: int = 0
        self.pools: dict[Hashable, Pool] = {}
        # The subscribers that have records, or had some lately.
        self.active: dict[Share, None] = {}

    @property
    def reserved(self) -> int:
        """The records that hold a slot or wait for one, without those that wait for the limit of an inner pool."""
        inner = sum(min(each.in_line, int(each.limit) - each.running) for each in self.pools.values())
        return self.running + self.in_line + inner

    @property
    def is_full(self) -> bool:
        """Whether a subscriber must not fetch beyond its part."""
        most = self.most_reserved
        free = most - self.reserved
        return free <= 0 or free <= self._left_for_others(most, [each for each in self.active if not each.reserved])

    def has_room_for(self, share: "Share") -> bool:
        """Whether there is a slot for a record of this subscriber."""
        free = self.limit - self.running
        if free <= 0 or share.running * len(self.active) < self.limit:
            return free > 0
        return free > self._left_for_others(self.limit, [each for each in self.active if not each.running])

    @staticmethod
    def _left_for_others(most: float, without: list["Share"]) -> float:
        return min(most // 2, len(without))


class Slots:
    """The slots: a record takes one for each pass; fetchers wait until one may be free.

    A fetcher only checks that a slot is free, since an idle subscriber must not hold one. asyncio's semaphore would
    hand its slots over in the order of the requests, whichever subscribers they are for.

    Each subscriber has a `Share`. Among the subscribers with a waiting record, a slot that becomes free goes to the one
    that holds the fewest slots, and among equals to the one that has waited the longest since it was last given one.
    """

    def __init__(self, limit: int, most_reserved: float) -> None:
        self.overall: Pool = Pool(limit or float("inf"), limit or most_reserved)
        self.waiting: dict[Share, None] = {}
        self.ticks: int = 0
        self._turns = 0
        self.fetchers: list[asyncio.Future[Any]] = []
        self.unshared: Share = self.share()
        self.released = 0
        """How many slots were given back so far; while this does not change, no pass ends."""

    @property
    def reserved(self) -> int:
        """The records that hold a slot or wait for one, without those that wait for their own pool's limit."""
        return self.overall.reserved

    @property
    def is_full(self) -> bool:
        """Whether every slot is taken or waited for."""
        return self.reserved >= self.overall.most_reserved

    def share(self, pool: Pool | None = None) -> "Share":
        """Make the share of one subscriber."""
        return Share(self, pool)

    def pool(self, key: Hashable, limit: int) -> Pool:
        """Return the pool of `key`; make it if there is none."""
        return self.overall.pools.setdefault(key, Pool(limit, limit))

    def tick(self) -> None:
        """Drop subscribers that have had no records lately from the active ones; called about once a second."""
        self.ticks += 1
        for pool in (self.overall, *self.overall.pools.values()):
            for share in [each for each in pool.active if not each.reserved and each.seen < self.ticks - _ACTIVE_TICKS]:
                del pool.active[share]
        while self.hand_over():
            pass

    async def wait_for_change(self, timeout_sec: float) -> None:
        """Wait until a slot may have become free, at most `timeout_sec` seconds."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        timer = loop.call_later(timeout_sec, _resolve, waiter)
        self.fetchers.append(waiter)
        try:
            await waiter
        finally:
            timer.cancel()

    def wake_waiters(self) -> None:
        """Wake all fetchers, so that they check again."""
        waiters, self.fetchers = self.fetchers, []
        for waiter in waiters:
            _resolve(waiter)

    def hand_over(self) -> bool:
        """Give a free slot to the waiting record whose turn it is; False if no waiting record may take one."""
        while able := [share for share in self.waiting if share.has_room]:
            share = min(able, key=lambda each: (each.running, each.turn))
            waiter, _ = share.queue.popitem(last=False)
            if not share.queue:
                del self.waiting[share]
            if not waiter.done():
                self._turns += 1
                share.turn = self._turns
                share.hand_over(waiter)
                self.wake_waiters()
                return True
        return False


class Share:
    """One subscriber's share of the slots."""

    __slots__ = ("_inner", "_pool", "_pools", "_slots", "queue", "running", "seen", "turn")

    def __init__(self, slots: Slots, pool: Pool | None) -> None:
        self._slots = slots
        # That of all subscribers; and a router's own, which is inside it. No loop goes over both for each record.
        self._pool: Pool = slots.overall
        self._inner: Pool | None = pool
        self._pools: tuple[Pool, ...] = (slots.overall,) if pool is None else (slots.overall, pool)
        self.running: int = 0
        # The tick of its last record, and the turn at which it was last given a slot.
        self.seen: int = -1
        self.turn: int = 0
        self.queue: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    @property
    def reserved(self) -> int:
        """How many of its records hold a slot or wait for one."""
        return self.running + len(self.queue)

    @property
    def is_full(self) -> bool:
        """Whether the subscriber must not fetch.

        It may always fetch up to its part, so that it has a record waiting when a slot becomes free.
        """
        reserved, pool, inner = self.running + len(self.queue), self._pool, self._inner
        if reserved * len(pool.active) >= pool.most_reserved and pool.is_full:
            return True
        return inner is not None and reserved * len(inner.active) >= inner.most_reserved and inner.is_full

    @property
    def has_room(self) -> bool:
        """Whether there is a slot for one of its records."""
        return all(pool.has_room_for(self) for pool in self._pools)

    def take(self, holder: Holder) -> None:
        """Take a slot for a record, or a place in line for one."""
        pool, inner = self._pool, self._inner
        if self.seen != self._slots.ticks:
            self.seen = self._slots.ticks
            for each in self._pools:
                each.active[self] = None
        # Where more slots are free than subscribers are active, there is room for any of them.
        if (pool.limit - pool.running <= len(pool.active) and not pool.has_room_for(self)) or (
            inner is not None and not inner.has_room_for(self)
        ):
            holder.slot = waiter = asyncio.get_running_loop().create_future()
            self.queue[waiter] = self._slots.waiting[self] = None
            self._pools[-1].in_line += 1
            return
        self.running += 1
        pool.running += 1
        if inner is not None:
            inner.running += 1
        holder.slot = True

    def give_back(self, holder: Holder) -> None:
        """Give a record's slot back, and hand it over if others wait; or give up its place in line."""
        slots, slot = self._slots, holder.slot
        holder.slot = None
        if slot is True or (slot is not None and slot.done() and not slot.cancelled()):
            self.running -= 1
            self._pool.running -= 1
            if self._inner is not None:
                self._inner.running -= 1
            slots.released += 1
        elif slot is not None:
            self.queue.pop(slot, None)
            self._pools[-1].in_line -= 1
            if not self.queue:
                slots.waiting.pop(self, None)
        if slots.waiting or slots.fetchers:
            slots.hand_over()
            slots.wake_waiters()

    def hand_over(self, waiter: asyncio.Future[None]) -> None:
        """Give a slot to a record that waits."""
        self._pools[-1].in_line -= 1
        self.running += 1
        for pool in self._pools:
            pool.running += 1
        waiter.set_result(None)


def _resolve(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)
