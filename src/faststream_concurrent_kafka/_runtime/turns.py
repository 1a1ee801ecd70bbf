"""Turns of the event loop: passes that compute run one after the other, and everything else runs in between (I21)."""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol


# What passes may use of one turn, in steps that are worth counting: a hundred of them may wake in the same turn.
BUDGET_SEC = 0.05
_WORTH_COUNTING_SEC = 0.0002
# Where turns take long by themselves (a slow machine, a tracer), the budget is larger, up to this many times, so that
# the turns between take no more than this share of the time.
_MOST_BUDGETS = 4
_SHARE_BETWEEN = 0.005
# A heartbeat that has become due is sent by its second turn; with these, other waiting tasks run as well.
_TURNS_BETWEEN = 4
# Passes that begin in one turn. Fewer where they compute, or most would only be put off.
_MOST_PER_TURN = 32


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the clock by which steps within one turn are measured; uvloop's own stands still there.

    A loop that overrides the clock of asyncio's loops, such as one in virtual time, is asked itself.
    """
    if (
        isinstance(loop, asyncio.BaseEventLoop)
        and getattr(loop.time, "__func__", None) is not asyncio.BaseEventLoop.time
    ):
        return loop.time
    return time.monotonic


class Waiting(Protocol):
    """What a pass belongs to."""

    def begin_to_wait(self) -> None:
        """Note that the pass can't go on."""
        ...

    def go_on(self) -> None:
        """Note that it goes on."""
        ...


class Turns:
    """How much of the loop's turns passes have used, and the passes that were put off for that."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self.is_closed: bool = False
        """Whether a pass has to wait: the turn is used up, or others wait already."""
        self.is_used_up: bool = False
        self.passes_per_turn: int = _MOST_PER_TURN
        """How many passes fit into one turn, as far as is known."""
        self.computed_sec: float = 0.0
        """Seconds of all steps that were worth counting."""
        self._budget_sec = BUDGET_SEC
        self._used_sec = 0.0
        self._steps = 0
        self._used_up_at = 0.0
        self._between_sec = float("inf")
        self._still_closed = 0
        self._is_renewing = False
        self._put_off: deque[asyncio.Future[None]] = deque()
        # Those that were resumed in a turn that was used up before they ran: they come first.
        self._put_off_again: deque[asyncio.Future[None]] = deque()
        # Not that of the record which happens to use up a turn.
        self._context = contextvars.Context()
        self._loop: asyncio.AbstractEventLoop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count the turns of this loop."""
        self._loop = loop
        self.clock = clock_of(loop)

    def spend(self, sec: float) -> None:
        """Note that a step has taken this many seconds."""
        self.computed_sec += sec
        self._used_sec += sec
        self._steps += 1
        if not self._is_renewing:
            self._is_renewing = True
            self._loop.call_soon(self._renew, context=self._context)
        if self._used_sec >= self._budget_sec and not self.is_used_up:
            self._used_up_at = self.clock()
            self.is_used_up = self.is_closed = True
            self.passes_per_turn = min(self._steps, _MOST_PER_TURN)
            self._still_closed = _TURNS_BETWEEN

    def put_off(self, *, again: bool = False) -> asyncio.Future[Any]:
        """Return a future that is resolved when the turn of a pass has come."""
        future = self._loop.create_future()
        (self._put_off_again if again else self._put_off).append(future)
        return future

    async def give_way(self) -> None:
        """Let what is ready run, and all that was put off before: for those who begin passes."""
        await asyncio.sleep(0)
        if self.is_closed:
            try:
                await self.put_off()
            finally:
                self.resume_next()

    def resume_next(self) -> None:
        """Have the next pass that was put off run in the next turn, unless this one is used up."""
        if self.is_used_up:
            return
        for queue in (self._put_off_again, self._put_off):
            while queue:
                future = queue.popleft()
                if not future.done():
                    future.set_result(None)
                    return
        self.is_closed = False

    def _renew(self) -> None:
        if self._still_closed:
            self._still_closed -= 1
            self._loop.call_soon(self._renew, context=self._context)
            return
        if self.is_used_up:
            self._between_sec = min(self._between_sec, self.clock() - self._used_up_at)
            self._budget_sec = min(max(BUDGET_SEC, self._between_sec / _SHARE_BETWEEN), _MOST_BUDGETS * BUDGET_SEC)
        else:
            self.passes_per_turn = min(2 * self.passes_per_turn, _MOST_PER_TURN)
        self._is_renewing = self.is_used_up = False
        self._used_sec, self._steps = 0.0, 0
        for _ in range(self.passes_per_turn):
            self.resume_next()


class Paced:
    """Awaits a coroutine as `await` does, but puts its steps off while the turn is used up.

    They are resumed in a later turn, in the order in which they were put off. A cancellation is never put off.
    """

    __slots__ = ("_put_off", "_send", "_turns", "_waiting", "cr_await")

    def __init__(self, turns: Turns, coroutine: Coroutine[Any, Any, Any], waiting: Waiting) -> None:
        self._turns = turns
        self._waiting = waiting
        self._put_off: Iterator[Any] | None = None
        self._send = coroutine.send
        # Named as a coroutine names what it waits for: that is how the stack of a task is followed.
        self.cr_await = coroutine

    def __await__(self) -> Iterator[Any]:
        """Return itself: it is resumed by `__next__`."""
        return self

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Go on to the next future that it waits for, which is one of `Turns` while it is put off."""
        turns = self._turns
        if self._put_off is not None:
            if turns.is_used_up:
                self._put_off = iter(turns.put_off(again=True))
                return next(self._put_off)
            self._go_on()
        elif turns.is_closed:
            self._waiting.begin_to_wait()
            self._put_off = iter(turns.put_off())
            return next(self._put_off)
        clock = turns.clock
        began = clock()
        try:
            return self._send(None)
        finally:
            took = clock() - began
            if took >= _WORTH_COUNTING_SEC:
                turns.spend(took)
            if turns.is_closed:
                turns.resume_next()

    def throw(self, error: Any, value: Any = None, traceback: Any = None) -> Any:
        """Raise an error where the coroutine waits."""
        if self._put_off is not None:
            self._go_on()
            self._turns.resume_next()
        error = error if value is None else value
        return self.cr_await.throw(error if traceback is None else error.with_traceback(traceback))

    def close(self) -> None:
        """End the coroutine where it waits."""
        if self._put_off is not None:
            self._go_on()
            self._turns.resume_next()
        self.cr_await.close()

    def _go_on(self) -> None:
        self._put_off = None
        self._waiting.go_on()
