"""An event loop whose time is virtual."""

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from typing_extensions import override


_T = TypeVar("_T")

_RESOLUTION_SEC = 1e-8


class DeadlockError(RuntimeError):
    """Every task waits for something that can't come: nothing is ready to run and no timer is set."""


class LeftoverTasksError(RuntimeError):
    """Tasks were still there when the coroutine given to `run_virtual` had returned."""


class _Clock(selectors.DefaultSelector):
    """Moves its time on by as much as it was asked to wait."""

    now_sec = 0.0

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            tasks = "".join(f"\n  {task!r}" for task in asyncio.all_tasks())
            raise DeadlockError(f"nothing is ready to run and no timer is set, but these tasks wait:{tasks}")
        if timeout is not None and not ready:
            self.now_sec += timeout
            if 0 < timeout < _RESOLUTION_SEC:
                # asyncio runs a timer that is so close, and whoever looks at the clock then would wait once more: it
                # has to move.
                self.now_sec = math.nextafter(self.now_sec, math.inf)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to its next timer instead of sleeping; `time()` is in virtual seconds, from 0.

    For code that waits for tasks and timers alone. It doesn't see coming what a thread or a socket will answer: it
    jumps past that, or raises `DeadlockError` where it would have waited for ever.
    """

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)

    @override
    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._clock.now_sec


def run_virtual(coro: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end on a `VirtualTimeLoop` of its own, and return its result.

    Raises what the coroutine raises, `DeadlockError` if it can't go on, and `LeftoverTasksError` if tasks were left
    when it returned. What is left is cancelled and awaited and the loop closed, in every case.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        result = runner.run(coro)
        leftover = "".join(f"\n  {task!r}" for task in asyncio.all_tasks(runner.get_loop()))
    if leftover:
        raise LeftoverTasksError(f"tasks were left, and cancelled:{leftover}")
    return result
