"""A pass over a record that somebody else drives: FastStream's own loop, or a call by hand."""

import asyncio
from typing import Any

from faststream.exceptions import StopConsume

from faststream_concurrent_kafka._record.record import Record, is_interrupt
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler


class InlineCall:
    """A record's task takes the slot for it, and is settled by its end.

    The pass itself stays in its own task and context, or scopes that its middlewares have opened could not be closed.
    """

    def __init__(self, raw: Any, driver: asyncio.Task[Any] | None, message: Any = None) -> None:
        self.raw = raw
        # The task that makes the pass.
        self.driver = driver
        # None until it was parsed.
        self.message = message
        self.record: Record
        loop = asyncio.get_running_loop()
        self._turn = loop.create_future()
        self._ended = loop.create_future()
        self._error: BaseException | None = None

    async def process(self, _raw: Any) -> None:
        """Be the record's pass: done when the whole of FastStream's pass is, publishing included."""
        self.record.message = self.message
        if not self._turn.done():
            self._turn.set_result(None)
        # Not the bare future: a cancellation of this task would cancel that as well.
        await asyncio.wait({self._ended})
        if self.record.source is not None:
            # If it has to be handled again, then like any other.
            self.record.process = self.record.source.process
        if self._error is not None and is_interrupt(self._error):
            # It has ended the event loop's run there, and need not do so twice: the record is left undone.
            self.record.cancel()
        elif self._error is not None:
            raise self._error

    def submit(self, handler: KafkaConcurrentHandler, record: Record) -> None:
        """Have the record's task begin."""
        self.record = record
        record.driver = self.driver
        # It has its task at once: nothing is before it in its order.
        task: Any = handler.submit(record)
        task.add_done_callback(self._abandon)

    def _abandon(self, _task: asyncio.Task[None]) -> None:
        """Cancel the pass if the record was given up, whatever its task was waiting for."""
        if self.driver is not None and not self._ended.done():
            self.driver.cancel()

    async def turn(self, message: Any) -> None:
        """Wait until the record's task has a slot.

        Raises:
            CancelledError: this task was cancelled, or the record's task was before it had one.

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
        """Note what the pass has come to, as far as our middleware has seen it."""
        self._error = error
        if isinstance(error, asyncio.CancelledError):
            # One that the handler has raised by itself is a failure like any other.
            if self.driver is not None and self.driver.cancelling() and self.record.task is not None:
                self.record.task.cancel()
        elif isinstance(error, StopConsume | SystemExit):
            # FastStream's loop stops the subscriber itself then, which waits for this record.
            self.end()

    def end(self) -> None:
        """Note that the pass is over."""
        if not self._ended.done():
            self._ended.set_result(None)
