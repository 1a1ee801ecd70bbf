"""The two functions that a lifespan calls."""

import logging
from typing import Any

from faststream import ContextRepo
from faststream.kafka import KafkaBroker
from typing_extensions import Unpack

from faststream_concurrent_kafka._subscriber import discovery
from faststream_concurrent_kafka._upstream.subscribers import context_of
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler
from faststream_concurrent_kafka.settings import Options, Settings


__all__ = ["initialize_concurrent_processing", "stop_concurrent_processing"]

logger: logging.Logger = logging.getLogger("faststream_concurrent_kafka")

# The key of the running handler in the context with which it was initialised.
CONTEXT_KEY = "kafka_concurrent_handler"
# The value under that key after a stop: false like None, but distinguishable from "never initialised".
STOPPED = False


async def initialize_concurrent_processing(
    context: ContextRepo,
    *,
    broker: KafkaBroker | None = None,
    **options: Unpack[Options],
) -> KafkaConcurrentHandler:
    """Start concurrent processing: call it in the lifespan, before or after the broker starts.

    Args:
        context: `app.context`, `broker.context`, or the one that FastStream injects into a lifespan.
        broker: needed only without an application, so that its subscribers are found before their first record.
        concurrency_limit: Records handled at once, over all subscribers; 0 = no limit but `max_uncommitted_tasks`.
        enable_batch_commit: Whether the library commits, for `AckPolicy.MANUAL` subscribers; False = it never commits.
        commit_batch_size: Commit when this many records have finished since the last commit, or after
            `commit_batch_timeout_sec`.
        commit_batch_timeout_sec: Commit this many seconds after the first record finished since the last commit, if not
            before.
        commit_metadata: Whether a commit says in its metadata which records behind an unfinished one have finished:
            they are not handled again after a crash, nor by the next owner of the partition.
        shutdown_timeout_sec: Seconds that a stop waits for running handlers before it cancels them.
        max_uncommitted_tasks: Records of one partition that may be fetched and not yet confirmed as committed by the
            broker; None = no bound, and none for the memory that they take.
        rebalance_flush_timeout_sec: Seconds that a rebalance waits for running handlers before the partitions are given
            away; 0 = not at all.
        cancel_lost_handlers: Whether handlers are cancelled whose partition went to another member; else they finish,
            and commit nothing.
        commit_renewal_sec: Seconds after which the offsets of idle partitions are committed again, before they expire;
            0 = never.
        commit_failure_timeout_sec: Seconds for which commits may fail before the health check turns red.
        observer_interval: Seconds between two checks of tasks and consumers by the observer, and so before it logs a
            problem.
        stall_timeout_sec: Seconds without a record, where there is one, after which the health check turns red; 0 =
            never.
        ordering: Which records of a partition are handled one at a time, in the order of their offsets: none
            ("unordered"), those with the same key ("key"), or all ("partition").
        on_failure: What becomes of a record whose handling fails: retries, then commit, dead letter or halt.
        handler_timeout_sec: Seconds after which a handler is cancelled, which counts as a failure; 0 = no limit.
        tune_gc: Whether, until the stop, Python's garbage collector runs less often and skips the objects of the start.

    `ordering`, `on_failure` and `handler_timeout_sec` may differ from router to router, and a router may have a
    `concurrency_limit` inside that of all: see `KafkaConcurrentProcessingMiddleware.configured`. `settings.Settings`
    has the types and defaults.

    Returns:
        The handler; the same one when it is called again with the same settings.

    Raises:
        SettingsError: a setting is not known or not allowed; the text names it.
        SetupError: initialised already with other settings or in another event loop, or a subscriber has `max_workers`.
        TypeError: `context` is not a `ContextRepo`, or `broker` not a `KafkaBroker`.

    """
    check_context(context)
    if broker is not None and not isinstance(broker, KafkaBroker):
        raise TypeError(f"broker must be a faststream.kafka.KafkaBroker, got {broker!r}")
    previous = KafkaConcurrentHandler.running()
    if previous is None and KafkaConcurrentHandler._instance is not None:  # noqa: SLF001 - the singleton's own reset
        # The handler of an event loop that was closed without a stop.
        KafkaConcurrentHandler._instance.discard()  # noqa: SLF001
    handler = KafkaConcurrentHandler(**Settings.of(**options).as_options())
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
            "subscriber becomes concurrent only with its first record. "
            "Call initialize_concurrent_processing(context, broker=broker)"
        )
    context.set_global(CONTEXT_KEY, handler)
    return handler


async def stop_concurrent_processing(context: ContextRepo) -> None:
    """Stop: wait for running handlers, commit, leave the consumer groups, end every task of the library.

    Normally the broker was stopped before, which has drained and committed; this stops the subscribers that still run.
    Takes at most a little more than `shutdown_timeout_sec`. Idempotent; when the call is cancelled, the stop goes on.

    While concurrent processing is initialised with another context too, only the subscribers of this context are
    stopped.

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
    """A context with which concurrent processing was initialised, and its brokers."""

    def __init__(self, context: ContextRepo, handler: KafkaConcurrentHandler) -> None:
        self.context = context
        # The brokers given by `broker=`; those of an application are found by its context.
        self.brokers: list[Any] = []
        self._handler = handler

    def _brokers(self) -> list[Any]:
        return list(
            {id(each): each for each in (*getattr(self.context.get("app"), "brokers", ()), *self.brokers)}.values()
        )

    def discover(self) -> list[str]:
        """Attach the subscribers that are not attached; return the problems of their setup."""
        return discovery.attach_all(self._brokers(), self._handler)

    def owns(self, source: Any) -> bool:
        """Whether a source is a subscriber of these brokers, or was found by its context."""
        subscriber = source.subscriber
        if context_of(subscriber) is self.context:
            return True
        return any(each is subscriber for each in discovery.subscribers_of(self._brokers()))


def check_context(context: Any) -> None:
    """Check that `context` is FastStream's `ContextRepo`.

    Raises:
        TypeError: it is not.

    """
    if not hasattr(context, "set_global"):
        raise TypeError(
            f"context must be FastStream's ContextRepo, such as app.context or broker.context, got {context!r:.200}"
        )
