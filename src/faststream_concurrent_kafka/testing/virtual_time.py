"""An event loop whose time is virtual."""

import asyncio
import contextvars
import math
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from typing_extensions import override


_T = TypeVar("_T")

# This many turns in a row take no time; each further one takes a microsecond, or code that waits for a moment by
# `sleep(0)`, or by very short waits, would never reach it.
_TURNS_AT_ONCE = 10_000
_TURN_SEC = 1e-6


class DeadlockError(RuntimeError):
    """Every task waits, no callback is ready and no timer is set, so nothing can happen any more."""


class LeftoverTasksError(RuntimeError):
    """Tasks were left when the coroutine given to `run_virtual` had returned."""


class _Clock(selectors.DefaultSelector):
    """Advances its time by the requested timeout."""

    now_sec = 0.0
    _turns = 0

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            tasks = "".join(f"\n  {task!r}" for task in asyncio.all_tasks())
            raise DeadlockError(f"nothing is ready to run and no timer is set, but these tasks wait:{tasks}")
        wait_sec = 0.0 if ready or timeout is None else timeout
        self._turns = 0 if wait_sec >= _TURN_SEC else self._turns + 1
        if self._turns > _TURNS_AT_ONCE:
            wait_sec = max(wait_sec, _TURN_SEC)
        self.now_sec += wait_sec
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to its next timer instead of sleeping; `time()` is in virtual seconds, from 0.

    For code that waits for tasks and timers only. Answers of threads or sockets are not foreseen: the loop jumps past
    their time, or raises `DeadlockError` if only they could wake it.

    Ready callbacks run before time passes; but after 10,000 turns in a row, each further turn takes a microsecond.
    """

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)

    @override
    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._clock.now_sec

    @override
    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back at a later moment, even if the wait is too small to change the time's value."""
        return super().call_at(max(when, math.nextafter(self.time(), math.inf)), callback, *args, context=context)


def run_virtual(coro: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end on a `VirtualTimeLoop` of its own, and return its result.

    Raises the coroutine's exception, `DeadlockError` if it can't go on, and `LeftoverTasksError` if tasks were left
    when it returned. Remaining tasks are cancelled and awaited, and the loop closed, in every case.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        result = runner.run(coro)
        leftover = "".join(f"\n  {task!r}" for task in asyncio.all_tasks(runner.get_loop()))
    if leftover:
        raise LeftoverTasksError(f"tasks were left, and cancelled:{leftover}")
    return result
