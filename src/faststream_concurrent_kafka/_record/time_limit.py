"""The time limit of a handler: cancels it, says where it was waiting, and remembers handlers that go on regardless.

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

# A handler that has not ended so long after its cancellation has swallowed it.
GRACE_SEC = 1.0
_THREAD_CHECK_SEC = 0.1


class TimeLimits:
    """Runs handlers under a time limit."""

    def __init__(self) -> None:
        # Those that came to their limit and have not ended: since when, and what to call them.
        self._overdue: dict[_Limit, tuple[float, str]] = {}

    async def run(self, handle: Callable[[], Awaitable[Any]], limit_sec: float, record: object) -> Any:
        """Await `handle()` for at most `limit_sec` seconds; while a `Record` is kept waiting none of them passes.

        Raises:
            HandlerTimeoutError: it took longer, whatever it made of its cancellation. A TimeoutError of the handler's
                own passes through.

        """
        limit = _Limit(self, limit_sec, record)
        if isinstance(record, Record):
            record.limit = limit
        try:
            async with limit.scope:
                result = await handle()
        except BaseException as error:
            # A CancelledError that the scope has let through is not its own: other code cancels the task as well.
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
        """Name the handlers that go on after their limit."""
        return [
            f"{name}, and goes on {now - since:.0f} s later, in its slot, {limit.now_at}"
            for limit, (since, name) in self._overdue.items()
            if now - since >= GRACE_SEC
        ]

    def exceeded(self, limit: "_Limit", since: float) -> None:
        """Note that a handler has come to its limit, and is cancelled where that is possible."""
        self._overdue[limit] = (since, limit.describe())

    def ended(self, limit: "_Limit") -> None:
        """Note that it has ended."""
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
        # asyncio's own, but started by this limit's timer: once it has cancelled the task, that place is lost.
        self.scope: asyncio.Timeout = asyncio.timeout(None)
        self._place = ""
        self.is_over: bool = False
        self._is_cancelled = False

    def pause(self) -> None:
        """Let no time pass, unless it is over."""
        if not self.is_over:
            self._left_sec = self._deadline - self._loop.time()
            self._timer.cancel()

    def resume(self) -> None:
        """Let time pass again."""
        if not self.is_over:
            self._deadline = self._loop.time() + self._left_sec
            self._timer = self._loop.call_later(self._left_sec, self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        # Otherwise the await would end, and the thread go on: in no slot, and beside the next attempt.
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
        """Where it is waiting now."""
        return f"at {suspended_at(self.task) or 'no await'}"

    def describe(self) -> str:
        """Say what happened."""
        came = "was cancelled after" if self._is_cancelled else "runs in a thread, and is over its limit of"
        return f"The handler of {self._record!r} {came} {self._limit_sec:g} s, at {self._place or 'no await'}"

    def end(self) -> None:
        """Note that the handler has ended, in time or not."""
        self._timer.cancel()
        if self._complaint is not None:
            self._complaint.cancel()
        self._limits.ended(self)
