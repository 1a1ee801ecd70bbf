"""Turns of the event loop: records that compute are let go one after the other, and the loop gets a word in between."""

import asyncio
import contextvars
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol


# What passes may use of one turn, in steps that are worth counting: a hundred of them may wake in the same turn.
BUDGET_SEC = 0.05
_WORTH_COUNTING_SEC = 0.0002
# A heartbeat that has become due is sent by its second turn; with these, whoever else waits comes to it as well.
_TURNS_BETWEEN = 4


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return what tells how long something took within one turn; uvloop's own clock stands still there.

    A loop that has made the clock of asyncio's loops its own, such as one in virtual time, is asked itself.
    """
    if (
        isinstance(loop, asyncio.BaseEventLoop)
        and getattr(loop.time, "__func__", None) is not asyncio.BaseEventLoop.time
    ):
        return loop.time
    return time.monotonic


class Waiting(Protocol):
    """Whose coroutine is put off."""

    def begin_to_wait(self) -> None:
        """Note that it can't go on."""
        ...

    def go_on(self) -> None:
        """Note that it goes on."""
        ...


class Turns:
    """How much of the loop's turns passes have used."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = time.monotonic
        # Whoever wants to compute now has to come again next turn.
        self.is_used_up = False
        # Seconds of all steps that were worth counting.
        self.computed_sec = 0.0
        self._used_sec = 0.0
        self._still_closed = 0
        self._is_renewing = False
        # Not that of the record which happens to use up a turn.
        self._context = contextvars.Context()
        self._loop: asyncio.AbstractEventLoop

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count the turns of this loop."""
        self._loop = loop
        self.clock = clock_of(loop)

    def spend(self, sec: float) -> None:
        """Note that a step has taken so long."""
        self.computed_sec += sec
        self._used_sec += sec
        if not self._is_renewing:
            self._is_renewing = True
            self._loop.call_soon(self._renew, context=self._context)
        if self._used_sec >= BUDGET_SEC and not self.is_used_up:
            self.is_used_up = True
            self._still_closed = _TURNS_BETWEEN

    def _renew(self) -> None:
        if self._still_closed:
            self._still_closed -= 1
            self._loop.call_soon(self._renew, context=self._context)
            return
        self._is_renewing = self.is_used_up = False
        self._used_sec = 0.0


class Paced:
    """Awaits a coroutine as `await` does, but for the steps that it puts off while the turn is used up.

    It is resumed one or more turns later then, in the order in which the others were put off. A cancellation is never
    put off.
    """

    __slots__ = ("_is_put_off", "_send", "_turns", "_waiting", "cr_await")

    def __init__(self, turns: Turns, coroutine: Coroutine[Any, Any, Any], waiting: Waiting) -> None:
        self._turns = turns
        self._waiting = waiting
        self._is_put_off = False
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
        """Go on to the next future that it waits for; or give the turn up, as `asyncio.sleep(0)` does."""
        turns = self._turns
        if turns.is_used_up:
            if not self._is_put_off:
                self._is_put_off = True
                self._waiting.begin_to_wait()
            return None
        if self._is_put_off:
            self._go_on()
        clock = turns.clock
        began = clock()
        try:
            return self._send(None)
        finally:
            took = clock() - began
            if took >= _WORTH_COUNTING_SEC:
                turns.spend(took)

    def throw(self, error: Any, value: Any = None, traceback: Any = None) -> Any:
        """Raise an error where the coroutine waits."""
        if self._is_put_off:
            self._go_on()
        error = error if value is None else value
        return self.cr_await.throw(error if traceback is None else error.with_traceback(traceback))

    def close(self) -> None:
        """End the coroutine where it waits."""
        if self._is_put_off:
            self._go_on()
        self.cr_await.close()

    def _go_on(self) -> None:
        self._is_put_off = False
        self._waiting.go_on()
