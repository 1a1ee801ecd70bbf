"""asyncio's tasks and anyio's threads: who awaits whom, and who waits for a thread."""

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import CellType
from typing import Any

from anyio import CapacityLimiter
from typing_extensions import override

from faststream_concurrent_kafka._runtime.stack import frames_of


# anyio's, by which a synchronous handler or dependency is run.
_THREADED = "run_sync_in_worker_thread"


def is_in_thread(task: asyncio.Task[Any]) -> bool:
    """Whether a task waits for a function that FastStream runs in a thread: cancelling it would not end that."""
    frames = frames_of(task)
    return bool(frames) and frames[-1].f_code.co_name == _THREADED


def awaiting(future: asyncio.Future[Any]) -> Iterator[asyncio.Future[Any]]:
    """Yield the futures, tasks among them, that a future resolves or resumes when it is done.

    Follows `await`, `gather`, `wait`, `wait_for`, `shield`, and the task groups of asyncio and anyio.
    """
    for callback, _context in getattr(future, "_callbacks", None) or ():
        held: list[Any] = [getattr(callback, "__self__", None)]
        held += callback.args if isinstance(callback, functools.partial) else ()
        held += [cell.cell_contents for cell in getattr(callback, "__closure__", None) or () if _is_filled(cell)]
        for each in held:
            # asyncio's and anyio's: it waits by a future of its own.
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
    """Let tasks that wait for a token of anyio's limiter wait within `waiting()`; return what ends that.

    It has slots, so nothing can be set on the instance: it gets a class of its own.
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
