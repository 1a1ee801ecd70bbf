"""The slots that limit how many passes run at once, and which subscriber gets one that becomes free (I20)."""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


# A subscriber counts as active for this many ticks (seconds) after its last record.
_ACTIVE_TICKS = 5


class Pool:
    """One concurrency limit and the subscribers under it: the limit of all, or a router's own one inside it.

    An active subscriber may always use its part of the limit, which is the limit divided by the number of active
    subscribers. Beyond that it may use free slots, but leaves one for each active subscriber that holds none (at most
    half of the pool is left in this way).
    """

    __slots__ = ("active", "limit", "most_reserved", "reserved", "running")

    def __init__(self, limit: float, most_reserved: float) -> None:
        self.limit: float = limit
        self.most_reserved: float = most_reserved
        self.reserved: int = 0
        self.running: int = 0
        # The subscribers that have records, or had some lately.
        self.active: dict[Share, None] = {}

    def is_full_for(self, share: "Share") -> bool:
        """Whether a subscriber must not fetch.

        It may always fetch up to its part, so that it has a record waiting when a slot becomes free.
        """
        most = self.most_reserved
        if share.reserved * len(self.active) < most:
            return False
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
    """The slots: record tasks take one for each pass; fetchers wait until one may be free.

    A fetcher only checks that a slot is free, since an idle subscriber must not hold one; the record's task takes it
    from `semaphore` (None = no limit). Records whose task has not taken its slot yet are therefore counted as
    `reserved`, or thousands would be fetched for one free slot.

    Each subscriber has a `Share`. Among the subscribers with a waiting record, a slot that becomes free goes to the one
    that holds the fewest slots, and among equals to the one that has waited the longest since it was last given one.
    """

    def __init__(self, limit: int, most_reserved: float) -> None:
        self.semaphore: asyncio.Semaphore | None = asyncio.Semaphore(limit) if limit else None
        self.overall: Pool = Pool(limit or float("inf"), limit or most_reserved)
        self.waiting: dict[Share, None] = {}
        self.ticks: int = 0
        self._turns = 0
        self.fetchers: list[asyncio.Future[Any]] = []
        self._pools: dict[Hashable, Pool] = {}
        self.unshared: Share = self.share()
        self.released = 0
        """How many reservations were released so far; while this does not change, no record ends."""

    @property
    def reserved(self) -> int:
        """The records that hold a slot or are about to take one, without those that wait for their own pool's limit."""
        return self.overall.reserved

    @property
    def is_full(self) -> bool:
        """Whether every slot is taken or reserved."""
        return self.reserved >= self.overall.most_reserved

    def share(self, pool: Pool | None = None) -> "Share":
        """Make the share of one subscriber."""
        return Share(self, pool)

    def pool(self, key: Hashable, limit: int) -> Pool:
        """Return the pool of `key`; make it if there is none."""
        return self._pools.setdefault(key, Pool(limit, limit))

    def tick(self) -> None:
        """Drop subscribers that have had no records lately from the active ones; called about once a second."""
        self.ticks += 1
        for pool in (self.overall, *self._pools.values()):
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
                share.count(1)
                waiter.set_result(None)
                self.wake_waiters()
                return True
        return False


class Share:
    """One subscriber's share of the slots."""

    __slots__ = ("_overall", "_pool", "_slots", "queue", "reserved", "running", "seen", "turn")

    def __init__(self, slots: Slots, pool: Pool | None) -> None:
        self._slots = slots
        self._overall = slots.overall
        self._pool = pool
        self.reserved: int = 0
        self.running: int = 0
        # The tick of its last record, and the turn at which it was last given a slot.
        self.seen: int = -1
        self.turn: int = 0
        self.queue: OrderedDict[asyncio.Future[Any], None] = OrderedDict()

    # -- for the fetcher -----------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the subscriber must not fetch."""
        return self._overall.is_full_for(self) or (self._pool is not None and self._pool.is_full_for(self))

    def reserve(self) -> None:
        """Count one more record that holds a slot or is about to take one."""
        self.reserved += 1
        pool = self._pool
        if self.seen != self._slots.ticks:
            self.seen = self._slots.ticks
            self._overall.active[self] = None
            if pool is not None:
                pool.active[self] = None
        if pool is not None:
            pool.reserved += 1
            if pool.reserved > pool.limit:
                return
        self._overall.reserved += 1

    def release(self) -> None:
        """Count one record less, and wake the fetchers."""
        self.reserved -= 1
        pool = self._pool
        if pool is not None:
            pool.reserved -= 1
        if pool is None or pool.reserved < pool.limit:
            self._overall.reserved -= 1
        slots = self._slots
        slots.released += 1
        if slots.fetchers:
            slots.wake_waiters()

    # -- for a record's task --------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether there is a slot for one of its records."""
        return self._overall.has_room_for(self) and (self._pool is None or self._pool.has_room_for(self))

    async def take(self) -> None:
        """Wait for a slot, and take it."""
        overall = self._overall
        if self._pool is None and len(overall.active) == 1 and overall.running < overall.limit:
            # The only active subscriber, as in most applications.
            self.running += 1
            overall.running += 1
        elif self.has_room:
            self.count(1)
        else:
            await self._wait()
        semaphore = self._slots.semaphore
        if semaphore is not None:
            # One is free, so this does not suspend.
            await semaphore.acquire()

    async def _wait(self) -> None:
        waiting = self._slots.waiting
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.queue[waiter] = waiting[self] = None
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                # The slot was handed over before the cancellation came.
                self.count(-1)
                self._slots.hand_over()
            else:
                self.queue.pop(waiter, None)
                if not self.queue:
                    waiting.pop(self, None)
            raise

    def leave(self) -> None:
        """Give the slot back, and hand it over if records wait."""
        slots = self._slots
        self.running -= 1
        self._overall.running -= 1
        if self._pool is not None:
            self._pool.running -= 1
        if slots.semaphore is not None:
            slots.semaphore.release()
        if slots.waiting:
            slots.hand_over()

    def count(self, more: int) -> None:
        """Add to the number of slots that are taken."""
        self.running += more
        self._overall.running += more
        if self._pool is not None:
            self._pool.running += more


def _resolve(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)
