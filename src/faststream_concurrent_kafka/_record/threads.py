"""The threads in which FastStream runs synchronous handlers: how many there are, and which records wait for one."""

import asyncio
import contextlib
from collections.abc import Callable, Generator

from anyio import CapacityLimiter
from anyio.to_thread import current_default_thread_limiter

from faststream_concurrent_kafka._record.record import current_record
from faststream_concurrent_kafka._upstream.tasks import surround_waits


# anyio's default limit. As many threads stay for FastStream's look-ups of parameters, in addition to one per slot.
_FOR_LOOK_UPS = 40


class Threads:
    """Raises anyio's limit of 40 threads, and notes which records wait for a thread.

    Only anyio's default is raised: another limit was set by the application. Without a `concurrency_limit` the default
    stays.
    """

    def __init__(self, concurrency_limit: int) -> None:
        self._concurrency_limit = concurrency_limit
        self._undo: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Raise the limit for the running event loop."""
        limiter = current_default_thread_limiter()
        restore = surround_waits(limiter, _waiting)
        raised_to = _FOR_LOOK_UPS + self._concurrency_limit
        if limiter.total_tokens == _FOR_LOOK_UPS:
            limiter.total_tokens = raised_to

        def undo() -> None:
            restore()
            _lower(limiter, raised_to)

        self._undo = undo

    def stop(self) -> None:
        """Restore the previous limiter, unless other code has changed it since."""
        self._undo()


def _lower(limiter: CapacityLimiter, raised_to: float) -> None:
    if limiter.total_tokens == raised_to:
        limiter.total_tokens = _FOR_LOOK_UPS


@contextlib.contextmanager
def _waiting() -> Generator[None]:
    record, task = current_record.get(), asyncio.current_task()
    # Only the task of the pass itself: a task that the handler has started does not keep the handler waiting.
    own = None if record is None else record.task if record.limit is None else record.limit.task
    if record is None or task is not own:
        yield
        return
    record.begin_to_wait()
    try:
        yield
    finally:
        record.go_on()
