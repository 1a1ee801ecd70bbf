"""The only room that touches what FastStream and aiokafka keep private.

A subscriber is attached by instance attributes: FastStream's loop looks up `get_msg` and `consume_one` on the instance,
and the broker calls its `stop`. `tests/test_private_parts.py` fails when one of the names used here changes.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError
from faststream.kafka.subscriber.usecase import LogicSubscriber
from faststream.message import StreamMessage
from faststream.middlewares import AckPolicy

from faststream_concurrent_kafka.batch_committer import KafkaCommitTask
from faststream_concurrent_kafka.errors import SetupError
from faststream_concurrent_kafka.offsets import PartitionLedger
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler
from faststream_concurrent_kafka.rebalance import ConcurrentRebalanceListener
from faststream_concurrent_kafka.records import Record, current_record
from faststream_concurrent_kafka.topic_groups import for_group


logger = logging.getLogger(__package__)

# `getmany` of a partition that does not exist counts as polling, fetches nothing and discards nothing: 3 us.
_NO_PARTITION = TopicPartition("\0none", 0)
_LONGEST_POLL_PAUSE_SEC = 1.0
# While records are buffered neither FastStream's loop nor `getone` ever suspends.
_RECORDS_PER_TURN = 32
_LEAST_STOP_SEC = 1.0


class MessageConsumer:
    """What `message.consumer` is while records are handled concurrently.

    A bare `commit` would commit the current position, past records that are still being handled, and a `seek` would
    make other records run twice. The outcome of `ack`, `nack` and `reject` is read off the message instead.
    """

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    async def commit(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: the library commits."""

    def seek(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: a record that was not acknowledged is handled again by itself."""


class SubscriberAttachment:
    """One subscriber whose records are handled concurrently."""

    def __init__(self, subscriber: LogicSubscriber[Any], handler: KafkaConcurrentHandler) -> None:
        self.subscriber = subscriber
        self.handler = handler
        self.commits = handler.settings.enable_batch_commit and subscriber.group_id is not None
        self._slots = handler.slots
        self._committer = handler.committer
        self._window = handler.settings.max_uncommitted_tasks
        self.consumer: Any = None
        self._paused: set[tuple[str, int]] = set()
        self._stopping: asyncio.Task[None] | None = None
        self._turns = 0
        self._poll_pause_sec = _LONGEST_POLL_PAUSE_SEC
        # Not `consume`, which swallows the outcome, and does nothing once the subscriber is not running.
        self.process = subscriber.process_message
        self._original_get_msg = subscriber.get_msg
        self._original_stop = subscriber.stop
        self._users_listener = subscriber._listener

    # -- attaching -----------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Put ourselves between FastStream's loop and its consumer."""
        subscriber = self.subscriber
        for name in ("get_msg", "consume_one", "stop"):
            setattr(subscriber, name, getattr(self, name))
        if self.commits and not subscriber.partitions:
            subscriber._listener = self._listener(around=self._users_listener)
            if (consumer := subscriber.consumer) is not None:
                # Its subscription was made before we came: what it calls, we call.
                subscription = consumer._subscription
                subscription._listener = self._listener(around=subscription._listener)
        self.handler.sources.append(self)

    def detach(self) -> None:
        """Leave the subscriber as it was found."""
        subscriber = self.subscriber
        for name, original in (("get_msg", self._original_get_msg), ("stop", self._original_stop)):
            if subscriber.__dict__.get(name) == getattr(self, name):
                delattr(subscriber, name)
                if getattr(subscriber, name) != original:
                    setattr(subscriber, name, original)
        if subscriber.__dict__.get("consume_one") == self.consume_one:
            del subscriber.consume_one
        subscriber._listener = self._users_listener

    def _listener(self, *, around: Any) -> ConcurrentRebalanceListener:
        return ConcurrentRebalanceListener(self.handler, lambda: self.subscriber.consumer, self._owns, users=around)

    def _owns(self, record: Record) -> bool:
        return record.source is self

    def _adopt(self, consumer: Any) -> None:
        """Take note of the consumer of this start of the subscriber."""
        self.consumer = consumer
        self._stopping = None
        self._paused.clear()
        self._poll_pause_sec = min(_LONGEST_POLL_PAUSE_SEC, getattr(consumer, "_max_poll_interval_ms", 300_000) / 3000)
        if self.commits:
            self.subscriber.parser._setup(MessageConsumer(consumer))
            offsets = self._committer.watch(consumer)
            offsets.rejoins = not self.subscriber.partitions
            offsets.on_ack = self._resume

    # -- what FastStream's loop calls ----------------------------------------------------------------------------

    async def get_msg(self, consumer: AIOKafkaConsumer) -> Any:
        """Wait for a free slot, keep polling meanwhile, and only then fetch: nothing is in hand while waiting."""
        if consumer is not self.consumer:
            self._adopt(consumer)
        self._turns += 1
        if self._turns % _RECORDS_PER_TURN == 0:
            await asyncio.sleep(0)
        while self._stopping is None and self._must_wait():
            await self._slots.wait_for_change(self._poll_pause_sec)
            if self._must_wait():
                await consumer.getmany(_NO_PARTITION, timeout_ms=0)
        if self._stopping is not None:
            return None
        return await self._original_get_msg(consumer)

    def _must_wait(self) -> bool:
        # What a dead committer can't commit would all be handled again after the restart: take nothing more.
        return self._slots.are_spoken_for or (self.commits and not self._committer.is_alive)

    async def consume_one(self, raw: Any) -> None:
        """Admit a record (or batch) and fire off its task. Nothing is awaited between the fetch and the admission."""
        consumer = self.subscriber.consumer
        if self._stopping is not None or consumer is None:
            # Fetched by a `getone` that was pending when the stop began: not admitted, so never committed past.
            return
        if consumer is not self.consumer:
            self._adopt(consumer)
        if isinstance(raw, tuple):
            self._consume_batch(raw)
            return
        commits = (self._admit(raw),) if self.commits else ()
        wanted = for_group(raw, self.subscriber.group_id)
        if wanted is None:
            self.complete(commits)
        else:
            self._handle(wanted, commits)

    def _consume_batch(self, batch: tuple[ConsumerRecord[Any, Any], ...]) -> None:
        wanted, commits = [], []
        for raw in batch:
            admitted = (self._admit(raw),) if self.commits else ()
            readable = for_group(raw, self.subscriber.group_id)
            if readable is None:
                self.complete(admitted)
            else:
                wanted.append(readable)
                commits += admitted
        if wanted:
            self._handle(tuple(wanted), commits)

    def _handle(self, raw: Any, commits: Sequence[KafkaCommitTask]) -> None:
        self.handler.handle_task(Record(raw, self.process, source=self, commits=commits))

    def _admit(self, raw: ConsumerRecord[Any, Any]) -> KafkaCommitTask:
        key = (raw.topic, raw.partition)
        task = KafkaCommitTask(self.consumer, key, raw.offset)
        self._committer.send_task(task)
        if task.ledger.window >= self._window:
            self._paused.add(key)
            self.consumer.pause(TopicPartition(*key))
        return task

    def _resume(self, key: tuple[str, int], ledger: PartitionLedger[KafkaCommitTask]) -> None:
        if key in self._paused and ledger.window <= self._window // 2:
            self._paused.discard(key)
            topic_partition = TopicPartition(*key)
            if self.consumer is not None and topic_partition in self.consumer.assignment():
                self.consumer.resume(topic_partition)

    def complete(self, commits: Iterable[KafkaCommitTask]) -> None:
        """Note that admitted records need no more work."""
        for commit in commits:
            self._committer.complete(commit)

    # -- a record that FastStream's own loop took before we were attached ------------------------------------------

    def admit_first(self, raw: Any) -> Sequence[KafkaCommitTask]:
        """Admit the record that is being handled by FastStream's loop itself, one at a time, while we attach."""
        self._adopt(self.subscriber.consumer)
        if not self.commits:
            return ()
        return [self._admit(record) for record in (raw if isinstance(raw, tuple) else (raw,))]

    async def keep_polling(self, until: asyncio.Future[Any]) -> None:
        """Poll in place of FastStream's loop while that handles a record, or the consumer would be evicted."""
        consumer = self.consumer
        while not until.done():
            await asyncio.wait({until}, timeout=self._poll_pause_sec)
            with contextlib.suppress(KafkaError, ConsumerStoppedError):
                await consumer.getmany(_NO_PARTITION, timeout_ms=0)

    def guard(self, message: StreamMessage[Any]) -> None:
        """Keep `ack` and `nack` of a message that was parsed before we were attached off the consumer."""
        if self.commits and self.consumer is not None:
            message.consumer = MessageConsumer(self.consumer)  # ty: ignore[missing-attribute]

    # -- stopping ------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Drain, commit, then stop the subscriber as FastStream does: in place of `subscriber.stop`.

        Takes `shutdown_timeout_sec` and a little. Concurrent calls share one stop, and it goes on when a caller is
        cancelled. Called from the task of one of the subscriber's own records it returns at once, because the stop
        waits for that record.
        """
        self.subscriber.running = False
        if self._stopping is None or (self._stopping.done() and self.subscriber.consumer is not None):
            self._stopping = asyncio.get_running_loop().create_task(self._stop(), name=f"kafka-stop {self.name}")
        record = current_record.get()
        if record is None or record.source is not self or record.task.done():
            await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        handler, consumer = self.handler, self.subscriber.consumer
        timeout_sec = handler.settings.shutdown_timeout_sec
        deadline = handler.now() + timeout_sec
        self._slots.wake_waiters()
        if not await handler.drain(self._owns, timeout_sec=timeout_sec):
            for record in await handler.cancel(self._owns):
                logger.error("Cancelled after %g s of shutdown, will be delivered again: %r", timeout_sec, record)
        if self.commits and consumer is not None:
            await self._committer.hold(consumer)
            if not await self._committer.flush(consumer, timeout_sec=max(deadline - handler.now(), _LEAST_STOP_SEC)):
                logger.error("The last commit of %s failed: its records will be delivered again", self.name)
        # Never cancelled: a consumer that is interrupted while it leaves stays in the group as a ghost.
        closing = asyncio.get_running_loop().create_task(self._original_stop(), name=f"kafka-close {self.name}")
        await asyncio.wait({closing}, timeout=max(deadline - handler.now(), _LEAST_STOP_SEC))
        if consumer is not None:
            # Only now: a rebalance that was under way while the consumer left has asked for it again.
            self._committer.forget(consumer)
        if not closing.done():
            logger.error("%s is still leaving its group: the broker does not answer", self.name)
        elif not closing.cancelled() and (error := closing.exception()) is not None:
            raise error

    def stop_application(self) -> None:
        """Ask the application to end, as FastStream does when a handler raises SystemExit."""
        app = self.subscriber._outer_config.context.get("app")
        leave = getattr(app, "exit", None)
        if callable(leave):
            leave()
        elif app is not None:
            logger.warning("%s can't be ended by a handler: only %s is stopped", type(app).__name__, self.name)

    # -- reports -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The subscriber's topics and group."""
        return f"subscriber {','.join(self.subscriber.topic_names)} (group {self.subscriber.group_id})"

    def problems(self) -> list[str]:
        """Say why its records may not be arriving."""
        subscriber = self.subscriber
        if not subscriber.running or self._stopping is not None or not is_real(subscriber):
            return []
        if subscriber.calls and all(task.done() for task in subscriber.tasks):
            return [f"the consume loop of {self.name} has ended"]
        coordination = getattr(self.consumer, "_coordinator", None)
        coordination = getattr(coordination, "_coordination_task", None)
        if coordination is not None and coordination.done():
            return [f"the group coordination of {self.name} has died"]
        return []


# -- which subscribers ---------------------------------------------------------------------------------------------


def is_real(subscriber: LogicSubscriber[Any]) -> bool:
    """Whether the subscriber consumes from a broker; not so under TestKafkaBroker, and before it is started."""
    return hasattr(subscriber.consumer, "getone") or bool(getattr(subscriber, "consumer_subgroup", None))


def is_loop_of(subscriber: LogicSubscriber[Any], task: asyncio.Task[Any] | None) -> bool:
    """Whether `task` is FastStream's own loop over the subscriber's records."""
    return task in subscriber.tasks


def attachment_of(subscriber: LogicSubscriber[Any], handler: KafkaConcurrentHandler) -> SubscriberAttachment | None:
    """Return the attachment of a subscriber to this handler, if there is one."""
    for source in handler.sources:
        if isinstance(source, SubscriberAttachment) and source.subscriber is subscriber:
            return source
    return None


def attach(subscriber: LogicSubscriber[Any], handler: KafkaConcurrentHandler) -> SubscriberAttachment:
    """Attach a subscriber that is not attached yet."""
    attachment = SubscriberAttachment(subscriber, handler)
    attachment.attach()
    return attachment


def why_not(subscriber: LogicSubscriber[Any], handler: KafkaConcurrentHandler) -> str | None:
    """Say why the records of a subscriber can't be handled concurrently.

    Raises:
        SetupError: the subscriber has workers of its own.

    """
    max_workers = getattr(subscriber, "max_workers", 1)
    if max_workers > 1:
        raise SetupError(
            f"max_workers={max_workers} of the subscriber of {subscriber.topic_names} can't be combined with "
            "KafkaConcurrentProcessingMiddleware: remove max_workers, and set concurrency_limit in "
            "initialize_concurrent_processing()",
        )
    if handler.settings.enable_batch_commit and subscriber.ack_policy is not AckPolicy.MANUAL:
        return (
            f"its ack_policy is {subscriber.ack_policy.name}, which commits records that others have not finished: "
            "set ack_policy=AckPolicy.MANUAL, and the library commits"
        )
    return None


def subscribers_with(middleware: type, brokers: Iterable[Any]) -> list[LogicSubscriber[Any]]:
    """Return the Kafka subscribers of the brokers that have this middleware, from the broker or a router."""

    def has_it(entry: Any) -> bool:
        factory = entry.func if isinstance(entry, functools.partial) else entry
        return isinstance(factory, type) and issubclass(factory, middleware)

    return [
        subscriber
        for broker in brokers
        for subscriber in broker.subscribers
        # Without a handler there is no loop: get_one() and `async for` are left alone.
        if isinstance(subscriber, LogicSubscriber)
        and subscriber.calls
        and any(map(has_it, subscriber._broker_middlewares))
    ]
