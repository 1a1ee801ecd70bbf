"""A pass over a record that somebody else drives: FastStream's own loop its first one, or a call by hand."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from faststream.message import StreamMessage

from faststream_concurrent_kafka.processing import KafkaConcurrentHandler
from faststream_concurrent_kafka.records import Record, current_record


class InlineCall:
    """A record's task takes the slot for it, and is settled by its end.

    The pass itself stays in its own task and context, or scopes that its middlewares have opened could not be closed.
    """

    def __init__(self, msg: StreamMessage[Any]) -> None:
        loop = asyncio.get_running_loop()
        self._msg = msg
        self._turn = loop.create_future()
        self.settled = loop.create_future()
        self._caller = asyncio.current_task()
        self._record: Record

    async def submit(
        self,
        handler: KafkaConcurrentHandler,
        record: Record,
        call_next: Callable[[StreamMessage[Any]], Awaitable[Any]],
    ) -> Any:
        """Wait for a slot, then go on with the middleware chain."""
        self._record = record
        # It has its task at once: the first record of a subscriber finds its lanes free, and others have none.
        task: Any = handler.handle_task(record)
        try:
            await asyncio.wait({task, self._turn}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not self._turn.done():
            raise asyncio.CancelledError("stopped before its turn came")
        token = current_record.set(record)
        try:
            return await call_next(self._msg)
        finally:
            current_record.reset(token)

    async def process(self, _raw: Any) -> None:
        """Be the record's pass: done when the whole of FastStream's pass is, publishing included."""
        self._record.message = self._msg
        self._turn.set_result(None)
        try:
            # Not the bare future: a cancellation of this task would cancel that as well.
            await asyncio.wait({self.settled})
        except asyncio.CancelledError:
            if self._caller is not None and not self.settled.done():
                self._caller.cancel()
            raise
        error = self.settled.result()
        if self._record.source is not None:
            # If it has to be handled again, then like any other.
            self._record.process = self._record.source.process
        if error is not None:
            raise error

    def settle(self, error: BaseException | None) -> None:
        """Note the end of FastStream's pass."""
        if not self.settled.done():
            self.settled.set_result(error)
        if isinstance(error, asyncio.CancelledError) and self._record.task is not None:
            self._record.task.cancel()
