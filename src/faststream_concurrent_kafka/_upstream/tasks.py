"""asyncio's tasks and anyio's threads: which task awaits which, and which tasks wait for a thread."""

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import CellType
from typing import Any

from anyio import CapacityLimiter
from typing_extensions import override

from faststream_concurrent_kafka._runtime.stack import frames_of


# anyio's function that runs a synchronous handler or dependency in a thread.
_THREADED = "run_sync_in_worker_thread"


def is_in_thread(task: asyncio.Task[Any]) -> bool:
    """Whether a task waits for a function that FastStream runs in a thread, which a cancellation would not end."""
    frames = frames_of(task)
    return bool(frames) and frames[-1].f_code.co_name == _THREADED


def awaiting(future: asyncio.Future[Any]) -> Iterator[asyncio.Future[Any]]:
    """Yield the futures (also tasks) that wait for this future.

    Follows `await`, `gather`, `wait`, `wait_for`, `shield`, and the task groups of asyncio and anyio.
    """
    for callback, _context in getattr(future, "_callbacks", None) or ():
        held: list[Any] = [getattr(callback, "__self__", None)]
        held += callback.args if isinstance(callback, functools.partial) else ()
        held += [cell.cell_contents for cell in getattr(callback, "__closure__", None) or () if _is_filled(cell)]
        for each in held:
            # A task group of asyncio or anyio waits by a future of its own.
            future_of_it = each._on_completed_fut if type(each).__name__ == "TaskGroup" else each
            if isinstance(future_of_it, asyncio.Future):
                yield future_of_it


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises where there are none yet
    except ValueError:
        return False
    return True


def surround_waits(limiter: CapacityLimiter, waiting: Callable[[], AbstractContextManager[None]]) -> Callable[[], None]:
    """Enter `waiting()` around each wait for a token of anyio's limiter; return a function that undoes this.

    The limiter has `__slots__`, so no method can be replaced on the instance: its class is replaced by a subclass.
    """
    original: Any = type(limiter)

    class Surrounded(original):
        __slots__ = ()

        @override
        async def acquire_on_behalf_of(self, borrower: object) -> None:
            if self.available_tokens > 0:
                await super().acquire_on_behalf_of(borrower)
                return
            with waiting():
                await super().acquire_on_behalf_of(borrower)

    def undo() -> None:
        if isinstance(limiter, Surrounded):
            limiter.__class__ = original

    limiter.__class__ = Surrounded
    return undo
