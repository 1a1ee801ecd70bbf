"""The middleware that users add, and `Attempt`, the type of a parameter that gets the number of the attempt."""

import asyncio
from collections.abc import Awaitable, Callable
from types import MappingProxyType, TracebackType
from typing import Annotated, Any, Self

from faststream import BaseMiddleware, Depends
from faststream.message import StreamMessage
from typing_extensions import Unpack, override

from faststream_concurrent_kafka._checks import check_integer
from faststream_concurrent_kafka._record.record import ATTEMPT_KEY, NEVER, Record, current_record, records_in
from faststream_concurrent_kafka._record.topic_group import for_group, make_readable
from faststream_concurrent_kafka._subscriber import discovery
from faststream_concurrent_kafka._subscriber.first_record import InlineCall
from faststream_concurrent_kafka._upstream.messages import around_innermost, narrow_batch
from faststream_concurrent_kafka._upstream.subscribers import is_real
from faststream_concurrent_kafka.lifespan import (
    CONTEXT_KEY,
    STOPPED,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler
from faststream_concurrent_kafka.settings import RouterOptions, Settings, check_names


__all__ = [
    "ATTEMPT_KEY",
    "Attempt",
    "KafkaConcurrentProcessingMiddleware",
    "initialize_concurrent_processing",
    "stop_concurrent_processing",
]


async def _current_attempt() -> int:
    record = current_record.get()
    return 1 if record is None else record.attempt


# Not `Context()`: FastDepends looks that up in a worker thread, which takes longer than FastStream's whole pass.
Attempt = Annotated[int, Depends(_current_attempt)]
"""Type of a handler's parameter that gets the number of this attempt at its record, from 1 on."""


class KafkaConcurrentProcessingMiddleware(discovery.Configured, BaseMiddleware):
    """Lets the records of a broker's or router's subscribers be handled concurrently.

    Add it to `KafkaBroker(middlewares=[...])`, `broker.add_middleware(...)` or `KafkaRouter(middlewares=[...])`, in any
    position, and call `initialize_concurrent_processing` in the lifespan.
    """

    # Class attributes, set on the few instances that need them: FastStream makes an instance for every record.
    _call: InlineCall | None = None
    _is_skipped = False
    _is_left_alone = False

    @classmethod
    def configured(cls, **overrides: Unpack[RouterOptions]) -> type[Self]:
        """Return a subclass of this middleware with settings for the subscribers of one router or broker.

        Args:
            concurrency_limit: records handled at once, at least 1; the subscribers with this subclass share this limit,
                within the limit of all.
            ordering: as in `initialize_concurrent_processing`.
            on_failure: the same.
            handler_timeout_sec: the same.

        A setting that is not given is that of `initialize_concurrent_processing`. Where a broker and its router both
        have the middleware, the router's settings take precedence.

        Raises:
            SettingsError: a setting is not known or not allowed; the text names it.

        """
        check_names(overrides, RouterOptions.__optional_keys__)
        if "concurrency_limit" in overrides:
            check_integer("concurrency_limit", overrides["concurrency_limit"], at_least=1)
        both = {**cls.overrides, **overrides}
        Settings().overridden(both)
        return type(cls.__name__, (cls,), {"overrides": MappingProxyType(both)})  # ty: ignore[unsupported-dynamic-base, invalid-explicit-return]

    @override
    async def on_receive(self) -> None:
        """Remove a `topic_group` header that FastStream can't read; the record's own task gets it removed already."""
        record = current_record.get()
        if (record is None or record.raw is not self.msg) and self.context.get_local("handler_") is not None:
            for raw in records_in(self.msg):
                make_readable(raw)

    @override
    async def consume_scope(
        self,
        call_next: Callable[[StreamMessage[Any]], Awaitable[Any]],
        msg: StreamMessage[Any],
    ) -> Any:
        """Call the handler: in the record's own task at once, elsewhere when a new task for the record has a slot."""
        record = current_record.get()
        if record is not None and record.raw is self.msg:
            # The record's own task. Where a broker and its router both have the middleware, the outer one does this.
            if record.message is None:
                record.message, source = msg, record.source
                if record.attempt > 1 or source is None:
                    self._set_attempt(record)
                if source is not None and source.settings.handler_timeout_sec:
                    return await self._limited(call_next, msg, record)
            return await call_next(msg)
        subscriber = self.context.get_local("handler_")
        if subscriber is None:
            # get_one(), `async for`, request(): the caller gets the message unfiltered.
            return await call_next(msg)
        if not await self._is_wanted(msg, subscriber):
            self._is_skipped = True
            return None
        if record is not None and (record.task is None or not record.task.done()):
            # A call by the handler of a record in flight: it is part of that record.
            return await call_next(msg)
        # Under TestKafkaBroker the handler is simply called.
        return await (self._handle(call_next, msg, subscriber) if is_real(subscriber) else call_next(msg))

    async def _is_wanted(self, msg: StreamMessage[Any], subscriber: Any) -> bool:
        """Whether the record is meant for the subscriber's group; a batch keeps only the records that are."""
        wanted = self._wanted(msg.raw_message, subscriber)
        if any(wanted) and not all(wanted):
            await narrow_batch(subscriber, msg, wanted)
        return any(wanted)

    @staticmethod
    def _wanted(raw: Any, subscriber: Any) -> list[bool]:
        return [for_group(each, subscriber.group_id) is not None for each in records_in(raw)]

    async def _handle(
        self,
        call_next: Callable[[StreamMessage[Any]], Awaitable[Any]],
        msg: StreamMessage[Any],
        subscriber: Any,
    ) -> Any:
        """Handle a record that has no task of its own."""
        handler = KafkaConcurrentHandler.running() if self.context.get(CONTEXT_KEY) is not STOPPED else None
        if handler is None:
            discovery.warn_once(
                subscriber,
                "initialize_concurrent_processing() was not called: its records are handled one at a time, "
                "and nothing commits them",
            )
            return await call_next(msg)
        attachment = discovery.attachment_of(subscriber, handler) or discovery.attach_late(subscriber, handler)
        if attachment is None:
            self._is_left_alone = True
            return await call_next(msg)
        attachment.guard(msg)
        call = attachment.in_hand
        if call is None or call.raw is not self.msg:
            self._call = call = InlineCall(self.msg, asyncio.current_task())
            record = Record(self.msg, call.process, source=attachment)
            # A direct caller gets the exception: no retry.
            record.end_by(NEVER)
            call.submit(handler, record)
        await call.turn(msg)
        token = current_record.set(call.record)
        self._set_attempt(call.record)
        try:
            return await self._limited(call_next, msg, call.record)
        finally:
            current_record.reset(token)

    def _set_attempt(self, record: Record) -> None:
        """Set the attempt's number for the handler and, from the second attempt on, for FastStream's log lines."""
        self.context.set_local(ATTEMPT_KEY, record.attempt)
        log_context = self.context.get_local("log_context")
        if log_context is not None and record.attempt > 1:
            log_context["attempt"] = record.attempt

    async def _limited(
        self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any], record: Record
    ) -> Any:
        """Call the handler, within its time limit if it has one."""
        handler = KafkaConcurrentHandler.running()
        limit_sec = 0 if record.source is None else record.source.settings.handler_timeout_sec
        if handler is None or not limit_sec:
            return await call_next(msg)
        # Around the handler only: middlewares see the HandlerTimeoutError, and their time does not count.
        limits = handler.time_limits
        within = around_innermost(call_next, lambda call: lambda it: limits.run(lambda: call(it), limit_sec, record))
        return await within(msg)

    @override
    async def publish_scope(self, call_next: Callable[[Any], Awaitable[Any]], cmd: Any) -> Any:
        """Publish the handler's result; a skipped record has none."""
        if self._is_skipped:
            return None
        return await call_next(cmd)

    @override
    async def after_processed(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> bool | None:
        """If another task than the record's makes this pass, pass its end on to the record's task."""
        record = current_record.get()
        if record is not None and record.raw is self.msg:
            return False
        subscriber = self.context.get_local("handler_")
        if isinstance(exc_val, Exception) and subscriber is not None and not any(self._wanted(self.msg, subscriber)):
            # A record for another group: whether it can be parsed, and whether a handler takes it, does not matter
            # here.
            self._note_end(subscriber, None)
            return True
        self._note_end(subscriber, exc_val)
        return False

    def _note_end(self, subscriber: Any, error: BaseException | None) -> None:
        if self._call is not None:
            self._call.note(error)
            self._call.end()
            return
        handler = KafkaConcurrentHandler.running()
        if handler is None or self._is_left_alone or subscriber is None or not is_real(subscriber):
            return
        # The pass did not reach `consume_scope` after the initialisation: the record can't be parsed, or the pass began
        # before. So the subscriber may have to be attached here.
        attachment = discovery.attachment_of(subscriber, handler) or discovery.attach_late(subscriber, handler)
        if attachment is not None and attachment.in_hand is not None and attachment.in_hand.raw is self.msg:
            attachment.in_hand.note(error)
