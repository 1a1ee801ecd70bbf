"""Several event loops in one thread, each for one process, with one clock and one scheduler."""

import asyncio
import math
import random
import selectors
from collections.abc import Callable
from typing import Any

from typing_extensions import override


FOREVER = float("inf")
_RESOLUTION_SEC = 1e-8
_MOST_TURNS_AT_ONCE = 20_000


class Clock:
    """The virtual time of all loops."""

    def __init__(self) -> None:
        self.now = 0.0


class _OneTurn(selectors.DefaultSelector):
    """A selector that ends its loop's turn at once, and notes how long the loop could have waited."""

    could_wait_sec: float | None = 0.0
    clock: Clock
    stop: Callable[[], None]

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.could_wait_sec = timeout
        if timeout is not None and 0 < timeout < _RESOLUTION_SEC:
            # asyncio fires a timer that is this close; code that then reads the clock would wait once more.
            self.clock.now = math.nextafter(self.clock.now + timeout, FOREVER)
        self.stop()
        return []


class ProcessLoop(asyncio.SelectorEventLoop):
    """The event loop of one process, which makes one turn at a time and may be stopped after any of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._turn = _OneTurn()
        self._turn.stop, self._turn.clock = self.stop, clock
        self.is_ready = True
        self.wakes_at = FOREVER
        self.turns = 0
        super().__init__(self._turn)

    @override
    def time(self) -> float:
        return self._clock.now

    @override
    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        self.is_ready = True
        return super().call_soon(callback, *args, context=context)

    @override
    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        # The scheduler has to read the loop's timers again.
        self.is_ready = True
        # A wait that is too small to be added to the time moves it on: `VirtualTimeLoop` does the same.
        return super().call_at(max(when, math.nextafter(self.time(), FOREVER)), callback, *args, context=context)

    def turn(self) -> None:
        """Run the callbacks that are ready now, and none that these make ready."""
        self.is_ready = False
        self.turns += 1
        self.run_forever()
        waits = self._turn.could_wait_sec
        self.wakes_at = FOREVER if waits is None else self._clock.now + waits
        if waits == 0:
            # The callbacks may have set timers.
            self.is_ready = True


class TimeStandsStillError(RuntimeError):
    """A loop always has callbacks that are ready, so time does not pass."""


class Scheduler:
    """Runs the loops, one turn at a time, in an order drawn from the seed; time passes only when none is ready."""

    def __init__(self, clock: Clock, rng: random.Random, around: Callable[[ProcessLoop], Any], check: Any) -> None:
        self._clock = clock
        self._rng = rng
        self._around = around
        self._check = check
        self.loops: list[ProcessLoop] = []
        self._turns = 0
        self._turned_at = 0.0

    def turn(self) -> bool:
        """Run one turn of a loop; return False if none is ready."""
        ready = [loop for loop in self.loops if loop.is_ready]
        if not ready:
            return False
        if self._turned_at < self._clock.now:
            self._turned_at, self._turns = self._clock.now, 0
        self._turns += 1
        if self._turns > _MOST_TURNS_AT_ONCE:
            raise TimeStandsStillError(f"at {self._clock.now} s: {[asyncio.all_tasks(loop) for loop in ready]}")
        loop = ready[0] if len(ready) == 1 else self._rng.choice(ready)
        with self._around(loop):
            loop.turn()
        self._check()
        return True

    def run_to(self, moment: float, *, until: Callable[[], bool] | None = None) -> bool:
        """Run until a moment, or until a condition holds while no loop is ready; return whether it holds."""
        while True:
            while self.turn():
                pass
            if until is not None and until():
                return True
            wakes_at = min((loop.wakes_at for loop in self.loops), default=FOREVER)
            if wakes_at > moment:
                self._clock.now = max(self._clock.now, moment)
                for loop in self.loops:
                    loop.is_ready |= loop.wakes_at <= moment
                return False
            self._clock.now = max(self._clock.now, wakes_at)
            for loop in self.loops:
                loop.is_ready |= loop.wakes_at <= self._clock.now


def dispose(loop: ProcessLoop, clock: Clock) -> list[asyncio.Task[Any]]:
    """Cancel the tasks of a loop; return those that do not end."""
    loop.set_exception_handler(lambda *_: None)
    left = asyncio.all_tasks(loop)
    for _ in range(100):
        if not left:
            break
        for task in left:
            task.cancel()
        clock.now += 1
        for _ in range(5):
            loop.turn()
        left = asyncio.all_tasks(loop)
    return list(left)
