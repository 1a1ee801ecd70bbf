"""The middleware that a user adds, and the two functions that a lifespan calls."""

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from types import MappingProxyType, TracebackType
from typing import Annotated, Any, ClassVar, Self

from faststream import BaseMiddleware, ContextRepo, Depends
from faststream.kafka import KafkaBroker
from faststream.message import StreamMessage
from faststream.middlewares import AckPolicy
from typing_extensions import override

from faststream_concurrent_kafka._checks import check_integer
from faststream_concurrent_kafka._record.record import NEVER, Record, current_record, records_in
from faststream_concurrent_kafka._subscriber import discovery
from faststream_concurrent_kafka._subscriber.attachment import SubscriberAttachment
from faststream_concurrent_kafka._subscriber.first_record import InlineCall
from faststream_concurrent_kafka._subscriber.topic_group import for_group, make_readable
from faststream_concurrent_kafka._upstream.messages import around_innermost, narrow_batch
from faststream_concurrent_kafka._upstream.subscribers import context_of, is_real
from faststream_concurrent_kafka.errors import SettingsError, SetupError
from faststream_concurrent_kafka.policies import FailurePolicy
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler
from faststream_concurrent_kafka.settings import Ordering, Settings


logger = logging.getLogger("faststream_concurrent_kafka")

# Under this key the running handler is found in the context it was initialised with.
CONTEXT_KEY = "kafka_concurrent_handler"
# What is there after a stop: as false as nothing, and yet not the same as before initialising.
STOPPED = False

# Under this one a handler finds which attempt it is, from 1 on.
ATTEMPT_KEY = "kafka_attempt"
_attempt: ContextVar[int] = ContextVar(ATTEMPT_KEY, default=1)


async def _current_attempt() -> int:
    return _attempt.get()


# Not by `Context`: FastDepends looks that up in a worker thread, which costs more than FastStream's whole pass.
Attempt = Annotated[int, Depends(_current_attempt)]
"""Type of a handler's parameter that gets the number of this attempt at its record, from 1 on."""

# What each subscriber was warned of.
_warned: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
_NO_MIDDLEWARE = "KafkaConcurrentProcessingMiddleware is not among its middlewares"
_DEFAULTS = Settings()


class KafkaConcurrentProcessingMiddleware(BaseMiddleware):
    """Lets the records of a broker's or router's subscribers be handled concurrently.

    Add it to `KafkaBroker(middlewares=[...])`, `broker.add_middleware(...)` or `KafkaRouter(middlewares=[...])`, in any
    position, and call `initialize_concurrent_processing` in the lifespan.
    """

    overrides: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Settings that its subscribers have of their own: see `configured`."""

    # Set on the few instances that need them: FastStream makes one for every record.
    _call: InlineCall | None = None
    _is_skipped = False
    _is_left_alone = False

    @classmethod
    def configured(
        cls,
        *,
        concurrency_limit: int | None = None,
        ordering: Ordering | None = None,
        on_failure: FailurePolicy | None = None,
        handler_timeout_sec: float | None = None,
    ) -> type[Self]:
        """Return this middleware with settings of its own, for the subscribers of one router or broker.

        What is not given is as in `initialize_concurrent_processing`. Where a broker and its router both have the
        middleware, the router's has the last word. `concurrency_limit` is one limit for all subscribers that have this
        very class, inside that of all.

        Raises:
            SettingsError: a setting is not allowed; the text names it.

        """
        if concurrency_limit is not None:
            check_integer("concurrency_limit", concurrency_limit, at_least=1)
        given = {
            "concurrency_limit": concurrency_limit,
            "ordering": ordering,
            "on_failure": on_failure,
            "handler_timeout_sec": handler_timeout_sec,
        }
        overrides = {**cls.overrides, **{name: value for name, value in given.items() if value is not None}}
        _DEFAULTS.overridden(overrides)
        return type(cls.__name__, (cls,), {"overrides": MappingProxyType(overrides)})  # ty: ignore[unsupported-dynamic-base, invalid-explicit-return]

    @override
    async def on_receive(self) -> None:
        """Take out a `topic_group` that FastStream could not read, where the record's own task has not done so."""
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
        """Go on in the record's own task; from anywhere else, submit the handling to the handler and await it."""
        record = current_record.get()
        if record is not None and record.raw is self.msg:
            # Its own task. Where a broker and its router both have us, the outer one sets the scene.
            if record.message is None:
                record.message = msg
                if record.source is not None and record.source.settings.handler_timeout_sec:
                    return await self._limited(call_next, msg, record)
                self._tell_attempt(record)
            return await call_next(msg)
        subscriber = self.context.get_local("handler_")
        if subscriber is None:
            # get_one(), `async for`, request(): whoever asked gets what there is.
            return await call_next(msg)
        if not await self._is_wanted(msg, subscriber):
            self._is_skipped = True
            return None
        if record is not None and (record.task is None or not record.task.done()):
            # Something that its handler has called: that is part of it.
            return await call_next(msg)
        # TestKafkaBroker handles records inline.
        return await (self._handle(call_next, msg, subscriber) if is_real(subscriber) else call_next(msg))

    async def _is_wanted(self, msg: StreamMessage[Any], subscriber: Any) -> bool:
        """Whether it is meant for the subscriber's group; of a batch, only what is stays in the message."""
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
            _warn_once(
                subscriber,
                "initialize_concurrent_processing() was not called: its records are handled one at a time, "
                "and nobody commits them",
            )
            return await call_next(msg)
        attachment = discovery.attachment_of(subscriber, handler)
        if attachment is None:
            reason = _why_not(subscriber, handler)
            if reason is not None:
                _warn_once(subscriber, reason)
                self._is_left_alone = True
                return await call_next(msg)
            attachment = _attach_late(subscriber, handler)
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
        try:
            return await self._limited(call_next, msg, call.record)
        finally:
            current_record.reset(token)

    def _tell_attempt(self, record: Record) -> None:
        """Let the handler and FastStream's log lines know which attempt this is."""
        _attempt.set(record.attempt)
        self.context.set_local(ATTEMPT_KEY, record.attempt)
        log_context = self.context.get_local("log_context")
        if log_context is not None:
            log_context["attempt"] = record.attempt

    async def _limited(
        self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any], record: Record
    ) -> Any:
        """Go on to the handler within its time limit, if it has one."""
        self._tell_attempt(record)
        handler = KafkaConcurrentHandler.running()
        limit_sec = 0 if record.source is None else record.source.settings.handler_timeout_sec
        if handler is None or not limit_sec:
            return await call_next(msg)
        # Around the handler alone: other middlewares see the HandlerTimeoutError, and their time does not count.
        limits = handler.time_limits
        within = around_innermost(call_next, lambda call: lambda it: limits.run(lambda: call(it), limit_sec, record))
        return await within(msg)

    @override
    async def publish_scope(self, call_next: Callable[[Any], Awaitable[Any]], cmd: Any) -> Any:
        """Publish; a record that was skipped has no result to publish."""
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
        """Tell the task of a record whose pass it does not make itself how that has ended."""
        record = current_record.get()
        if record is not None and record.raw is self.msg:
            return False
        subscriber = self.context.get_local("handler_")
        if isinstance(exc_val, Exception) and subscriber is not None and not any(self._wanted(self.msg, subscriber)):
            # That it can't be parsed, or that no handler takes it, is up to the group that it is meant for.
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
        attachment = discovery.attachment_of(subscriber, handler)
        if attachment is None and _why_not(subscriber, handler) is None:
            # It did not come to `consume_scope` since we were initialised: it can't be parsed, or had begun before.
            attachment = _attach_late(subscriber, handler)
        if attachment is not None and attachment.in_hand is not None and attachment.in_hand.raw is self.msg:
            attachment.in_hand.note(error)


async def initialize_concurrent_processing(  # noqa: PLR0913 - each is one setting
    context: ContextRepo,
    *,
    broker: KafkaBroker | None = None,
    concurrency_limit: int = _DEFAULTS.concurrency_limit,
    enable_batch_commit: bool = _DEFAULTS.enable_batch_commit,
    commit_batch_size: int = _DEFAULTS.commit_batch_size,
    commit_batch_timeout_sec: float = _DEFAULTS.commit_batch_timeout_sec,
    shutdown_timeout_sec: float = _DEFAULTS.shutdown_timeout_sec,
    max_uncommitted_tasks: int = _DEFAULTS.max_uncommitted_tasks,
    commit_metadata: bool = _DEFAULTS.commit_metadata,
    rebalance_flush_timeout_sec: float = _DEFAULTS.rebalance_flush_timeout_sec,
    cancel_lost_handlers: bool = _DEFAULTS.cancel_lost_handlers,
    commit_renewal_sec: float = _DEFAULTS.commit_renewal_sec,
    commit_failure_timeout_sec: float = _DEFAULTS.commit_failure_timeout_sec,
    stall_timeout_sec: float = _DEFAULTS.stall_timeout_sec,
    ordering: Ordering = _DEFAULTS.ordering,
    on_failure: FailurePolicy = _DEFAULTS.on_failure,
    handler_timeout_sec: float = _DEFAULTS.handler_timeout_sec,
) -> KafkaConcurrentHandler:
    """Start concurrent processing: call it in the lifespan, before or after the broker starts.

    Args:
        context: `app.context`, `broker.context`, or the one that FastStream injects into a lifespan.
        broker: needed only without an application, so that its subscribers are found before their first record.
        concurrency_limit: records handled at once, over all subscribers; 0 = no limit but `max_uncommitted_tasks`.
        enable_batch_commit: whether the library commits, for subscribers with `AckPolicy.MANUAL`.
        commit_batch_size: commit when so many records have finished since the last commit ...
        commit_batch_timeout_sec: ... or so many seconds after the first of them.
        shutdown_timeout_sec: seconds that a stop waits for running handlers before it cancels them.
        max_uncommitted_tasks: records of one partition that may be fetched and not yet committed.
        commit_metadata: whether commits tell what has finished behind an unfinished record, so that it is not handled
            again after a crash.
        rebalance_flush_timeout_sec: seconds that a rebalance waits for running handlers; 0 = not at all.
        cancel_lost_handlers: whether handlers are cancelled whose partition went to another member.
        commit_renewal_sec: seconds after which the offsets of idle partitions are committed again; 0 = never.
        commit_failure_timeout_sec: seconds for which commits may fail before the health check turns red.
        stall_timeout_sec: seconds without a record, where there is one, after which it turns red; 0 = never.
        ordering: "unordered"; "key": records of a partition with the same key are handled one at a time, in the order
            of their offsets; "partition": all records of a partition are.
        on_failure: what becomes of a record whose handling fails: retries, then commit, dead letter or halt.
        handler_timeout_sec: seconds after which a handler is cancelled, which is a failure; 0 = no limit.

    The last three may differ from router to router, and a router may have a `concurrency_limit` inside that of all: see
    `KafkaConcurrentProcessingMiddleware.configured`.

    Returns:
        The handler; the same one when it is called again with the same settings.

    Raises:
        SettingsError: a setting is not allowed; the text names it.
        SetupError: initialised already with other settings or in another event loop, or a subscriber has `max_workers`.
        TypeError: `context` is not a `ContextRepo`, or `broker` not a `KafkaBroker`.

    """
    check_context(context)
    if broker is not None and not isinstance(broker, KafkaBroker):
        raise TypeError(f"broker must be a faststream.kafka.KafkaBroker, got {broker!r}")
    previous = KafkaConcurrentHandler.running()
    if previous is None and KafkaConcurrentHandler._instance is not None:  # noqa: SLF001 - the singleton's own reset
        # Left over from an event loop that has been closed without a stop.
        KafkaConcurrentHandler._instance.discard()  # noqa: SLF001
    handler = KafkaConcurrentHandler(
        concurrency_limit=concurrency_limit,
        enable_batch_commit=enable_batch_commit,
        commit_batch_size=commit_batch_size,
        commit_batch_timeout_sec=commit_batch_timeout_sec,
        shutdown_timeout_sec=shutdown_timeout_sec,
        max_uncommitted_tasks=max_uncommitted_tasks,
        commit_metadata=commit_metadata,
        rebalance_flush_timeout_sec=rebalance_flush_timeout_sec,
        cancel_lost_handlers=cancel_lost_handlers,
        commit_renewal_sec=commit_renewal_sec,
        commit_failure_timeout_sec=commit_failure_timeout_sec,
        stall_timeout_sec=stall_timeout_sec,
        ordering=ordering,
        on_failure=on_failure,
        handler_timeout_sec=handler_timeout_sec,
    )

    known = handler.users.get(context)
    user = known if isinstance(known, _User) else _User(context, handler)
    if broker is not None and broker not in user.brokers:
        user.brokers.append(broker)
    try:
        handler.start()
        handler.serve(user)
    except BaseException:
        if previous is None:
            await handler.stop()
            handler.discard()
        raise
    if broker is None and not hasattr(context.get("app"), "brokers"):
        handler.knows_all_brokers = False
        logger.warning(
            "initialize_concurrent_processing() was given a context without an application, and no broker: each "
            "subscriber becomes concurrent when its first record is handled, and before that none of its offsets is "
            "held. Call initialize_concurrent_processing(context, broker=broker)"
        )
    context.set_global(CONTEXT_KEY, handler)
    return handler


def _attach_those_of(brokers: Iterable[Any], handler: KafkaConcurrentHandler) -> list[str]:
    """Attach the subscribers of the brokers that are not; say what is wrong with all of them."""
    subscribers = discovery.subscribers_of(brokers)
    for subscriber in subscribers:
        if not discovery.has(subscriber, KafkaConcurrentProcessingMiddleware):
            if subscriber.ack_policy is AckPolicy.MANUAL:
                _warn_once(
                    subscriber,
                    f"{_NO_MIDDLEWARE}. With AckPolicy.MANUAL nothing is committed for it, unless "
                    "its handlers do that: add the middleware to its broker or router",
                )
        elif discovery.attachment_of(subscriber, handler) is None:
            reason = discovery.why_not(subscriber, handler, KafkaConcurrentProcessingMiddleware)
            if reason is None:
                discovery.attach(subscriber, handler, KafkaConcurrentProcessingMiddleware)
            else:
                _warn_once(subscriber, reason)
    has_middleware = any(discovery.has(each, KafkaConcurrentProcessingMiddleware) for each in subscribers)
    forgotten = [each.topic_names for each in subscribers if each.ack_policy is AckPolicy.MANUAL]
    if forgotten and not has_middleware:
        return [f"no subscriber is concurrent: KafkaConcurrentProcessingMiddleware is in none of those of {forgotten}"]
    return []


async def stop_concurrent_processing(context: ContextRepo) -> None:
    """Stop: drain and commit what is in flight, leave the consumer groups, end every task of the library.

    Normally the broker has been stopped by then, and has drained and committed; subscribers that still run are
    stopped here. Takes `shutdown_timeout_sec` and a little at most. Idempotent; when cancelled, the stop goes on.

    While it is initialised with another context too, only the subscribers that belong to this one are stopped, and the
    rest goes on.

    Raises:
        TypeError: `context` is not a `ContextRepo`.

    """
    check_context(context)
    found = context.get(CONTEXT_KEY)
    handler = found or KafkaConcurrentHandler.running()
    context.set_global(CONTEXT_KEY, STOPPED)
    if handler is None or not handler.is_running:
        return
    user = handler.users.get(context)
    if user is not None and len(handler.users) > 1:
        await handler.release(user)
    elif user is not None or found is not STOPPED:
        await handler.stop()


class _User:
    """A context, and what goes with it."""

    def __init__(self, context: ContextRepo, handler: KafkaConcurrentHandler) -> None:
        self.context = context
        # Those that were named; an application knows its own.
        self.brokers: list[Any] = []
        self._handler = handler

    def _brokers(self) -> list[Any]:
        return list(
            {id(each): each for each in (*getattr(self.context.get("app"), "brokers", ()), *self.brokers)}.values()
        )

    def discover(self) -> list[str]:
        """Attach the subscribers that are not; say what is wrong with all of them."""
        return _attach_those_of(self._brokers(), self._handler)

    def owns(self, source: Any) -> bool:
        """Whether a source is a subscriber of these brokers, or was found by its context."""
        subscriber = source.subscriber
        if context_of(subscriber) is self.context:
            return True
        return any(each is subscriber for each in discovery.subscribers_of(self._brokers()))


def check_context(context: Any) -> None:
    """Refuse what is no context repository of FastStream's.

    Raises:
        TypeError: it is not.

    """
    if not hasattr(context, "set_global"):
        raise TypeError(
            f"context must be FastStream's ContextRepo, such as app.context or broker.context, got {context!r:.200}"
        )


def _why_not(subscriber: Any, handler: KafkaConcurrentHandler) -> str | None:
    try:
        return discovery.why_not(subscriber, handler, KafkaConcurrentProcessingMiddleware)
    except (SetupError, SettingsError) as error:
        return str(error)


def _attach_late(subscriber: Any, handler: KafkaConcurrentHandler) -> SubscriberAttachment:
    """Attach a subscriber that nothing speaks against, and that was not found before its first record."""
    # It may have been declared a moment ago.
    handler.discover()
    attachment = discovery.attachment_of(subscriber, handler)
    if attachment is None:
        if handler.knows_all_brokers:
            logger.warning(
                "The subscriber of %s was found only by its first record, before which none of its offsets was held. "
                "Give initialize_concurrent_processing() the context of the application that runs, or broker=",
                subscriber.topic_names,
            )
        attachment = discovery.attach(subscriber, handler, KafkaConcurrentProcessingMiddleware)
    return attachment


def _warn_once(subscriber: Any, reason: str) -> None:
    warned = _warned.setdefault(subscriber, set())
    if reason not in warned:
        warned.add(reason)
        logger.warning("The subscriber of %s is not concurrent: %s", subscriber.topic_names, reason)
