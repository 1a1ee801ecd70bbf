"""The slots that limit how many records are handled at once."""

import asyncio
from typing import Any


class Slots:
    """A semaphore for those who have a record, and a place to wait for those who might fetch one.

    A fetcher looks at a free slot without taking it, since an idle subscriber must not hold one; the record's task
    takes it from `semaphore` (None = no limit). So what is in flight but has not begun counts as well, or thousands
    would be fetched for one free slot.
    """

    def __init__(self, limit: int, most_claims: float) -> None:
        self.semaphore = asyncio.Semaphore(limit) if limit else None
        self.most_claims = limit or most_claims
        self.claims = 0
        self.given_up = 0
        """How often a slot was let go; while that stays the same, nothing comes to an end."""
        self._waiters: list[asyncio.Future[Any]] = []

    @property
    def are_spoken_for(self) -> bool:
        """Whether every slot is taken or claimed, so that nothing more should be fetched."""
        return self.claims >= self.most_claims

    def claim(self) -> None:
        """Count somebody who holds a slot or is about to take one."""
        self.claims += 1

    def give_up_claim(self) -> None:
        """Count one less, and let those who wait look again."""
        self.claims -= 1
        self.given_up += 1
        if self._waiters:
            self.wake_waiters()

    async def wait_for_change(self, timeout_sec: float) -> None:
        """Return when a slot may have become free, and after `timeout_sec` seconds at the latest."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        timer = loop.call_later(timeout_sec, _resolve, waiter)
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            timer.cancel()

    def wake_waiters(self) -> None:
        """Let everybody who waits look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _resolve(waiter)


def _resolve(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)
