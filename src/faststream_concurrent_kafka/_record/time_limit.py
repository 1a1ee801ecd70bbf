"""The time limit of handlers: cancels them, logs where they were waiting, and lists those that go on regardless.

Invariants: I27.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka._runtime.stack import suspended_at
from faststream_concurrent_kafka._upstream.tasks import is_in_thread
from faststream_concurrent_kafka.errors import HandlerTimeoutError


logger = logging.getLogger("faststream_concurrent_kafka")

# Seconds after its cancellation at which a handler that has not ended is reported.
GRACE_SEC = 1.0
_THREAD_CHECK_SEC = 0.1


class TimeLimits:
    """Runs handlers under a time limit."""

    def __init__(self) -> None:
        # The handlers that have exceeded their limit and not ended: since when, and their description.
        self._overdue: dict[_Limit, tuple[float, str]] = {}

    async def run(self, handle: Callable[[], Awaitable[Any]], limit_sec: float, record: object) -> Any:
        """Await `handle()` for at most `limit_sec` seconds; waits for a thread or a turn of the loop do not count.

        Raises:
            HandlerTimeoutError: it took longer, even if it swallowed its cancellation. A TimeoutError that the handler
                itself raises passes through.

        """
        limit = _Limit(self, limit_sec, record)
        if isinstance(record, Record):
            record.limit = limit
        try:
            async with limit.scope:
                result = await handle()
        except BaseException as error:
            # A CancelledError that the timeout has let through comes from other code, which cancels the task as well.
            if limit.is_over and not isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
                raise HandlerTimeoutError(limit.describe()) from error
            raise
        finally:
            if isinstance(record, Record):
                record.limit = None
            limit.end()
        if limit.is_over:
            raise HandlerTimeoutError(f"{limit.describe()}, and has gone on to its end")
        return result

    def problems(self, now: float) -> list[str]:
        """Describe the handlers that go on after their limit."""
        return [
            f"{name}, and goes on {now - since:.0f} s later, in its slot, {limit.now_at}"
            for limit, (since, name) in self._overdue.items()
            if now - since >= GRACE_SEC
        ]

    def exceeded(self, limit: "_Limit", since: float) -> None:
        """Note that a handler has exceeded its limit."""
        self._overdue[limit] = (since, limit.describe())

    def ended(self, limit: "_Limit") -> None:
        """Note that the handler has ended."""
        self._overdue.pop(limit, None)


class _Limit:
    """One handler's."""

    def __init__(self, limits: TimeLimits, limit_sec: float, record: object) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit needs a task")
        self.task = task
        self._limits = limits
        self._limit_sec = limit_sec
        self._record = record
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(limit_sec, self._expire)
        self._deadline = self._loop.time() + limit_sec
        self._left_sec = limit_sec
        self._complaint: asyncio.TimerHandle | None = None
        # `asyncio.timeout`, but expired by this limit's timer, which first notes where the task is suspended: after the
        # cancellation that is lost.
        self.scope: asyncio.Timeout = asyncio.timeout(None)
        self._place = ""
        self.is_over: bool = False
        self._is_cancelled = False

    def pause(self) -> None:
        """Stop the clock, unless the limit is exceeded."""
        if not self.is_over:
            self._left_sec = self._deadline - self._loop.time()
            self._timer.cancel()

    def resume(self) -> None:
        """Start the clock again."""
        if not self.is_over:
            self._deadline = self._loop.time() + self._left_sec
            self._timer = self._loop.call_later(self._left_sec, self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        # Not cancelled: the await would end, and the thread go on without a slot, at the same time as the next attempt.
        self._is_cancelled = not is_in_thread(self.task)
        if self._is_cancelled:
            self.scope.reschedule(now)
        else:
            self._timer = self._loop.call_later(_THREAD_CHECK_SEC, self._expire)
        if not self.is_over:
            self.is_over = True
            self._place = suspended_at(self.task)
            self._limits.exceeded(self, now)
            self._complaint = self._loop.call_later(GRACE_SEC, self._complain)

    def _complain(self) -> None:
        logger.error(
            "%s, and goes on, in its slot, %s. A handler must not swallow CancelledError; a thread can't be cancelled.",
            self.describe(),
            self.now_at,
        )

    @property
    def now_at(self) -> str:
        """Where the handler is waiting now."""
        return f"at {suspended_at(self.task) or 'no await'}"

    def describe(self) -> str:
        """Describe how the limit was exceeded."""
        came = "was cancelled after" if self._is_cancelled else "runs in a thread, and is over its limit of"
        return f"The handler of {self._record!r} {came} {self._limit_sec:g} s, at {self._place or 'no await'}"

    def end(self) -> None:
        """End the timer: the handler has ended."""
        self._timer.cancel()
        if self._complaint is not None:
            self._complaint.cancel()
        self._limits.ended(self)
