"""The slots that limit how many passes run at once, and which subscriber gets one that becomes free (I20)."""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


# For so many ticks after its last record a slot is left for a subscriber that holds none.
_ACTIVE_TICKS = 5


class Pool:
    """A limit for some subscribers: that of all, or one of their own inside it.

    Each active subscriber has its part of the limit. What others leave it may take as well, but not the last slots: for
    each active one that holds none a slot is left, in up to half of the pool.
    """

    __slots__ = ("active", "limit", "most_reserved", "reserved", "running")

    def __init__(self, limit: float, most_reserved: float) -> None:
        self.limit: float = limit
        self.most_reserved: float = most_reserved
        self.reserved: int = 0
        self.running: int = 0
        # Those that have records, or had some lately.
        self.active: dict[Share, None] = {}

    def is_full_for(self, share: "Share") -> bool:
        """Whether a subscriber should fetch nothing.

        Up to its part it always may, so that its records are in line for whatever becomes free.
        """
        most = self.most_reserved
        if share.reserved * len(self.active) < most:
            return False
        free = most - self.reserved
        return free <= 0 or free <= self._left_for_others(most, [each for each in self.active if not each.reserved])

    def has_room_for(self, share: "Share") -> bool:
        """Whether a record of a subscriber may begin."""
        free = self.limit - self.running
        if free <= 0 or share.running * len(self.active) < self.limit:
            return free > 0
        return free > self._left_for_others(self.limit, [each for each in self.active if not each.running])

    @staticmethod
    def _left_for_others(most: float, without: list["Share"]) -> float:
        return min(most // 2, len(without))


class Slots:
    """A semaphore for those who have a record, and a place to wait for those who might fetch one.

    A fetcher looks at a free slot without taking it, since an idle subscriber must not hold one; the record's task
    takes it from `semaphore` (None = no limit). So what is in flight but has not begun counts as well, or thousands
    would be fetched for one free slot.

    Each subscriber has a `Share`. A slot that becomes free goes to the one that holds the fewest among those with a
    record that waits, and among equals to the one whose last turn is the longest ago.
    """

    def __init__(self, limit: int, most_reserved: float) -> None:
        self.semaphore: asyncio.Semaphore | None = asyncio.Semaphore(limit) if limit else None
        self.everybody: Pool = Pool(limit or float("inf"), limit or most_reserved)
        self.waiting: dict[Share, None] = {}
        self.ticks: int = 0
        self._turns = 0
        self.fetchers: list[asyncio.Future[Any]] = []
        self._pools: dict[Hashable, Pool] = {}
        self.unshared: Share = self.share()
        self.released = 0
        """How often a slot was let go; while that stays the same, nothing comes to an end."""

    @property
    def reserved(self) -> int:
        """How many hold a slot or are about to take one; what pools of their own keep waiting is not counted."""
        return self.everybody.reserved

    @property
    def is_full(self) -> bool:
        """Whether every slot is taken or claimed."""
        return self.reserved >= self.everybody.most_reserved

    def share(self, pool: Pool | None = None) -> "Share":
        """Return the share of one more subscriber."""
        return Share(self, pool)

    def pool(self, key: Hashable, limit: int) -> Pool:
        """Return the pool that belongs to `key`."""
        return self._pools.setdefault(key, Pool(limit, limit))

    def tick(self) -> None:
        """Forget who has had no records lately: called about once a second."""
        self.ticks += 1
        for pool in (self.everybody, *self._pools.values()):
            for share in [each for each in pool.active if not each.reserved and each.seen < self.ticks - _ACTIVE_TICKS]:
                del pool.active[share]
        while self.hand_over():
            pass

    async def wait_for_change(self, timeout_sec: float) -> None:
        """Return when a slot may have become free, and after `timeout_sec` seconds at the latest."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        timer = loop.call_later(timeout_sec, _resolve, waiter)
        self.fetchers.append(waiter)
        try:
            await waiter
        finally:
            timer.cancel()

    def wake_waiters(self) -> None:
        """Let everybody who waits look again."""
        waiters, self.fetchers = self.fetchers, []
        for waiter in waiters:
            _resolve(waiter)

    def hand_over(self) -> bool:
        """Give a free slot to the record whose turn it is; False if none can take it."""
        while able := [share for share in self.waiting if share.has_room]:
            share = min(able, key=lambda each: (each.running, each.turn))
            waiter, _ = share.queue.popitem(last=False)
            if not share.queue:
                del self.waiting[share]
            if not waiter.done():
                self._turns += 1
                share.turn = self._turns
                share.count(1)
                waiter.set_result(None)
                self.wake_waiters()
                return True
        return False


class Share:
    """One subscriber's part in the slots."""

    __slots__ = ("_everybody", "_pool", "_slots", "queue", "reserved", "running", "seen", "turn")

    def __init__(self, slots: Slots, pool: Pool | None) -> None:
        self._slots = slots
        self._everybody = slots.everybody
        self._pool = pool
        self.reserved: int = 0
        self.running: int = 0
        # At which tick it had a record last, and at which turn it was handed a slot.
        self.seen: int = -1
        self.turn: int = 0
        self.queue: OrderedDict[asyncio.Future[Any], None] = OrderedDict()

    # -- for who fetches -----------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether nothing should be fetched."""
        return self._everybody.is_full_for(self) or (self._pool is not None and self._pool.is_full_for(self))

    def reserve(self) -> None:
        """Count a record that holds a slot or is about to take one."""
        self.reserved += 1
        pool = self._pool
        if self.seen != self._slots.ticks:
            self.seen = self._slots.ticks
            self._everybody.active[self] = None
            if pool is not None:
                pool.active[self] = None
        if pool is not None:
            pool.reserved += 1
            if pool.reserved > pool.limit:
                return
        self._everybody.reserved += 1

    def release(self) -> None:
        """Count one less, and let those who wait to fetch look again."""
        self.reserved -= 1
        pool = self._pool
        if pool is not None:
            pool.reserved -= 1
        if pool is None or pool.reserved < pool.limit:
            self._everybody.reserved -= 1
        slots = self._slots
        slots.released += 1
        if slots.fetchers:
            slots.wake_waiters()

    # -- for who has a record ------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether one of its records may begin."""
        return self._everybody.has_room_for(self) and (self._pool is None or self._pool.has_room_for(self))

    async def take(self) -> None:
        """Wait for a slot, and take it."""
        everybody = self._everybody
        if self._pool is None and len(everybody.active) == 1 and everybody.running < everybody.limit:
            # Alone, as most are.
            self.running += 1
            everybody.running += 1
        elif self.has_room:
            self.count(1)
        else:
            await self._wait()
        semaphore = self._slots.semaphore
        if semaphore is not None:
            # There is one, so this does not suspend.
            await semaphore.acquire()

    async def _wait(self) -> None:
        waiting = self._slots.waiting
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.queue[waiter] = waiting[self] = None
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                # It was handed over already.
                self.count(-1)
                self._slots.hand_over()
            else:
                self.queue.pop(waiter, None)
                if not self.queue:
                    waiting.pop(self, None)
            raise

    def leave(self) -> None:
        """Give the slot back, or to the record whose turn it is."""
        slots = self._slots
        self.running -= 1
        self._everybody.running -= 1
        if self._pool is not None:
            self._pool.running -= 1
        if slots.semaphore is not None:
            slots.semaphore.release()
        if slots.waiting:
            slots.hand_over()

    def count(self, more: int) -> None:
        """Count the slots that are taken."""
        self.running += more
        self._everybody.running += more
        if self._pool is not None:
            self._pool.running += more


def _resolve(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)
