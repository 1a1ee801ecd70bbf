"""A pass that the record's task does not make itself: FastStream's own loop makes it, or a direct caller."""

import asyncio
from typing import Any

from faststream.exceptions import StopConsume

from faststream_concurrent_kafka._record.record import Record, is_interrupt
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler


class InlineCall:
    """Connects such a pass with the record's task, which takes the slot for it and waits for its end.

    The pass stays in the task and context in which it began, or its middlewares could not close the scopes that they
    have opened.
    """

    def __init__(self, raw: Any, driver: asyncio.Task[Any] | None, message: Any = None) -> None:
        self.raw = raw
        # The task that makes the pass.
        self.driver = driver
        # None until FastStream has parsed the record.
        self.message = message
        self.record: Record
        loop = asyncio.get_running_loop()
        self._turn = loop.create_future()
        self._ended = loop.create_future()
        self._error: BaseException | None = None

    async def process(self, _raw: Any) -> None:
        """Wait for the end of the whole FastStream pass, publishing included: the `process` of the record."""
        self.record.message = self.message
        if not self._turn.done():
            self._turn.set_result(None)
        # Not `await self._ended`: a cancellation of this task would cancel the future.
        await asyncio.wait({self._ended})
        if self.record.source is not None:
            # Further attempts are made like those of any other record.
            self.record.process = self.record.source.process
        if self._error is not None and is_interrupt(self._error):
            # A KeyboardInterrupt has ended the event loop's run already: leave the record undone, and do not raise it
            # again.
            self.record.cancel()
        elif self._error is not None:
            raise self._error

    def submit(self, handler: KafkaConcurrentHandler, record: Record) -> None:
        """Start the record's task."""
        self.record = record
        record.driver = self.driver
        # It has a task at once, because no record is before it in its order.
        task: Any = handler.runner.submit(record)
        task.add_done_callback(self._abandon)

    def _abandon(self, _task: asyncio.Task[None]) -> None:
        """Cancel the pass if the record's task has ended before it."""
        if self.driver is not None and not self._ended.done():
            self.driver.cancel()

    async def turn(self, message: Any) -> None:
        """Wait until the record's task has a slot.

        Raises:
            CancelledError: this task was cancelled, or the record's task was cancelled before it had a slot.

        """
        self.message = self.record.message = message
        task: Any = self.record.task
        try:
            await asyncio.wait({task, self._turn}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not self._turn.done():
            raise asyncio.CancelledError("stopped before its turn came")

    def note(self, error: BaseException | None) -> None:
        """Note the exception of the pass, or None, as the library's middleware has seen it."""
        self._error = error
        if isinstance(error, asyncio.CancelledError):
            # Only if the task was cancelled: a CancelledError that the handler itself raises is a failure like any
            # other.
            if self.driver is not None and self.driver.cancelling() and self.record.task is not None:
                self.record.task.cancel()
        elif isinstance(error, StopConsume | SystemExit):
            # FastStream's loop now stops the subscriber, and the stop waits for this record.
            self.end()

    def end(self) -> None:
        """End the wait: the pass is over."""
        if not self._ended.done():
            self._ended.set_result(None)
