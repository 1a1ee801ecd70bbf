"""Turns of the event loop: passes that compute are spread over several turns, so that other tasks run too (I21)."""

import asyncio
import contextvars
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol


# How long the steps of all passes may take in one turn (a hundred passes may wake in the same turn), and from which
# duration a step is counted.
BUDGET_SEC = 0.05
_WORTH_COUNTING_SEC = 0.0002
# Where the turns in between take long (a slow machine, a tracer), the budget grows, up to this factor, so that these
# turns take no more than this share of the time.
_MOST_BUDGETS = 4
_SHARE_BETWEEN = 0.005
# Turns without passes after a used-up one. A heartbeat that is due is sent in the second of them.
_TURNS_BETWEEN = 4
# How many passes begin in one turn; fewer when they compute, or most would only be put off.
_MOST_PER_TURN = 32


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the clock that measures steps within one turn, in which uvloop's `time()` stands still.

    A loop that overrides the clock of asyncio's loops, such as one with virtual time, is used as the clock.
    """
    if (
        isinstance(loop, asyncio.BaseEventLoop)
        and getattr(loop.time, "__func__", None) is not asyncio.BaseEventLoop.time
    ):
        return loop.time
    return time.monotonic


class Waiting(Protocol):
    """What `Paced` needs of a record: it notes when its pass waits for a turn."""

    def begin_to_wait(self) -> None:
        """Note that the pass waits."""
        ...

    def go_on(self) -> None:
        """Note that the pass goes on."""
        ...


class Turns:
    """How much time passes have used in this turn of the loop, and which passes are put off to later turns."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self.is_closed: bool = False
        """Whether a pass has to wait: the turn is used up, or other passes are put off already."""
        self.is_used_up: bool = False
        self.passes_per_turn: int = _MOST_PER_TURN
        """An estimate of how many passes fit into one turn."""
        self.computed_sec: float = 0.0
        """The total time of all counted steps."""
        self._budget_sec = BUDGET_SEC
        self._used_sec = 0.0
        self._steps = 0
        self._used_up_at = 0.0
        self._between_sec = float("inf")
        self._still_closed = 0
        self._is_renewing = False
        self._put_off: deque[asyncio.Future[None]] = deque()
        # Passes that were resumed, but only after their turn had been used up: they come first.
        self._put_off_again: deque[asyncio.Future[None]] = deque()
        # An empty context, in place of that of the record which happens to use up a turn.
        self._context = contextvars.Context()
        self._loop: asyncio.AbstractEventLoop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Measure the turns of this loop."""
        self._loop = loop
        self.clock = clock_of(loop)

    def spend(self, sec: float) -> None:
        """Count a step that has taken this many seconds."""
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
        """Put a pass off: return a future that is resolved when the pass may go on."""
        future = self._loop.create_future()
        (self._put_off_again if again else self._put_off).append(future)
        return future

    async def give_way(self) -> None:
        """Let other ready tasks run, and all passes that were put off; called before new passes begin."""
        await asyncio.sleep(0)
        if self.is_closed:
            try:
                await self.put_off()
            finally:
                self.resume_next()

    def resume_next(self) -> None:
        """Resume the next pass that was put off, unless this turn is used up."""
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


@types.coroutine
def paced(turns: Turns, coroutine: Coroutine[Any, Any, Any], waiting: Waiting) -> Generator[Any, Any, Any]:
    """Await a coroutine as `await` does, but put its steps off while turns are used up.

    Steps are resumed in the order in which they were put off. A cancellation is never put off. A generator, because it
    is resumed for each step, and an object with `__next__` costs twice as much.
    """
    thrown: BaseException | None = None
    while True:
        if turns.is_closed and thrown is None:
            waiting.begin_to_wait()
            try:
                yield from turns.put_off()
                while turns.is_used_up:
                    yield from turns.put_off(again=True)
            except BaseException as error:  # noqa: BLE001 - the coroutine decides
                thrown = error
            finally:
                waiting.go_on()
        clock = turns.clock
        began = clock()
        try:
            awaited = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
        except StopIteration as end:
            return end.value
        finally:
            # An exception refers to this frame.
            thrown = None
            took = clock() - began
            if took >= _WORTH_COUNTING_SEC:
                turns.spend(took)
            if turns.is_closed:
                turns.resume_next()
        try:
            yield awaited
        except BaseException as error:  # noqa: BLE001 - the coroutine decides
            thrown = error
        awaited = None
