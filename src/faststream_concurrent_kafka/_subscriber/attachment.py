"""One subscriber whose records are handled concurrently.

It replaces methods on the subscriber instance: FastStream's loop looks up `get_msg` there, and the broker calls its
`start` and `stop`.
"""

import asyncio
import contextlib
import contextvars
import functools
import logging
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError
from faststream.exceptions import IgnoredException
from faststream.kafka.subscriber.usecase import LogicSubscriber
from faststream.message import StreamMessage

from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._partition.redelivery import Redeliverable
from faststream_concurrent_kafka._record.dead_letter import DeadLetterPublisher, describe
from faststream_concurrent_kafka._record.ordering import order_keys_of
from faststream_concurrent_kafka._record.record import ATTEMPT_KEY, Record, current_record, records_in
from faststream_concurrent_kafka._record.slots import Share
from faststream_concurrent_kafka._record.topic_group import for_group
from faststream_concurrent_kafka._subscriber.consumer import CommittedConsumer
from faststream_concurrent_kafka._subscriber.first_record import InlineCall
from faststream_concurrent_kafka._subscriber.health import SubscriberHealth
from faststream_concurrent_kafka._subscriber.rebalance import LEAST_COMMIT_SEC, ConcurrentRebalanceListener
from faststream_concurrent_kafka._subscriber.shared_stop import SharedStop
from faststream_concurrent_kafka._upstream import consumers, hooks, messages, subscribers
from faststream_concurrent_kafka._upstream.messages import MessageConsumer
from faststream_concurrent_kafka._upstream.polling import Polling, poll_pause_sec
from faststream_concurrent_kafka.errors import brief
from faststream_concurrent_kafka.policies import DeadLetter
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler
from faststream_concurrent_kafka.settings import Settings


logger = logging.getLogger("faststream_concurrent_kafka")

# `getmany` of a partition that does not exist counts as polling, fetches nothing and discards nothing: 3 us.
_NO_PARTITION = TopicPartition("\0none", 0)
_LEAST_STOP_SEC = 1.0


class SubscriberAttachment:
    """One subscriber whose records are handled concurrently."""

    def __init__(
        self, subscriber: LogicSubscriber[Any], handler: KafkaConcurrentHandler, settings: Settings, share: Share
    ) -> None:
        self.subscriber = subscriber
        self.handler = handler
        self.settings = settings
        self.share = share
        self.commits = settings.enable_batch_commit and subscriber.group_id is not None
        self._is_unordered = settings.ordering == "unordered"
        self.in_flight = 0
        self.context: contextvars.Context | None = None
        self._slots = handler.slots
        self._loop_lag = handler.loop_lag
        self._submit = handler.runner.submit
        self._committer = handler.committer
        self.consumer: Any = None
        # The pass that FastStream's loop was making when this was attached, until that pass is over.
        self.in_hand: InlineCall | None = None
        # The state of the consumer, if the library commits for it.
        self._committed: CommittedConsumer | None = None
        # The records that still ran when their partition was revoked, until they end.
        self._outlived_revoke: MutableMapping[Admission, Record] = weakref.WeakValueDictionary()
        self._dead_letters = DeadLetterPublisher(
            lambda: subscribers.make_producer(subscriber),
            handler.background,
            lambda topic: subscribers.reads(subscriber, topic),
        )
        self.stopping: SharedStop | None = None
        # Since when the subscriber waits for its first start; None once it was started.
        self._unstarted_since: float | None = handler.now()
        self._is_starting = False
        self._closing: asyncio.Task[None] | None = None
        # The uncommitted records of the last consumer: the next one may be delivered them again.
        self._left: Mapping[tuple[str, int], Redeliverable[Admission]] = {}
        self._turns = handler.turns
        self._poll_pause_sec: float
        # Not `consume`, which swallows exceptions, and does nothing once the subscriber is not running.
        self.process = subscriber.process_message
        self._health = SubscriberHealth(subscriber, self.name, stall_timeout_sec=handler.settings.stall_timeout_sec)

    # -- attaching -----------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Replace the subscriber's methods; take over its consumer and the record in hand, if it runs already."""
        subscriber = self.subscriber
        self._replaced = subscribers.ReplacedMethods(
            subscriber,
            {"get_msg": self.get_msg, "start": self.start, "stop": self.stop},
        )
        self._original_get_msg = subscribers.plain_fetch(self._replaced["get_msg"])
        subscribers.watch_consumers(subscriber, self._adopt)
        if subscribers.is_real(subscriber):
            consumer = subscriber.consumer
            subscribers.set_consumer_of_messages(subscriber, self._adopt(consumer))
            if self._committed is not None:
                # It has subscribed already: put the library's listener around its own.
                hooks.wrap_listener(consumer, functools.partial(self._listener, self._committed))
        self.handler.attached.add(self)
        can_admit = subscriber.running and (self._committer.is_alive or not self.commits)
        if can_admit and (found := subscribers.in_hand(subscriber)) is not None:
            self._take_over(*found)
        if self._committed is not None:
            self._committed.positions.take_over()

    def detach(self) -> None:
        """Restore the subscriber's methods."""
        self._replaced.restore()
        subscribers.watch_consumers(self.subscriber, None)

    def _listener(self, committed: CommittedConsumer, around: Any) -> ConcurrentRebalanceListener:
        return ConcurrentRebalanceListener(
            *(self.handler, committed.consumer, self._owns, self._outlived_revoke),
            users=around,
            begin=committed.positions.watch,
            note_eviction=lambda: self._health.note_eviction(self.handler.now()),
        )

    def _owns(self, record: Record) -> bool:
        return record.source is self

    def _adopt(self, consumer: Any) -> Any:
        """Take over a new consumer of the subscriber; return the object by which its messages acknowledge.

        It has not subscribed yet (except when the subscriber was attached late), so every later call of the user's is
        seen.
        """
        self.consumer = consumer
        self.stopping = None
        self._has_begun = False
        self._poll_pause_sec = poll_pause_sec(consumer)
        self.handler.loop_lag.note_session(consumers.session_timeout_sec(consumer))
        if self not in self.handler.sources:
            self.handler.sources.append(self)
        if not self.commits:
            return consumer
        self._committed = committed = CommittedConsumer(
            self.name,
            consumer,
            self._committer,
            window_size=self.settings.window,
            outlived_revoke=self._outlived_revoke,
            records=self.handler.records,
            wrap_listener=self._listener,
        )
        committed.offsets.expect(self._left)
        self._left = {}
        committed.offsets.is_group_managed = not self.subscriber.partitions
        if committed.offsets.is_group_managed:
            self._check_rebalance_timeout(consumers.rebalance_timeout_sec(consumer))
        return MessageConsumer(consumer)

    def _check_rebalance_timeout(self, timeout_sec: float) -> None:
        flush_sec = self.handler.settings.rebalance_flush_timeout_sec
        if flush_sec + LEAST_COMMIT_SEC > timeout_sec:
            logger.warning(
                "%s: its group waits for %g s for a member at a rebalance (rebalance_timeout_ms, or else "
                "session_timeout_ms), and rebalance_flush_timeout_sec=%g and a commit may take longer than that. Then "
                "it goes on without this one, and others handle the same records: lower rebalance_flush_timeout_sec",
                *(self.name, timeout_sec, flush_sec),
            )

    async def start(self) -> None:
        """Start the subscriber as FastStream does, after a stop that is under way; replaces `subscriber.start`."""
        self._is_starting = True
        try:
            while (stop := self.stopping) is not None:
                with contextlib.suppress(Exception):
                    # The callers of that stop get its exception.
                    await stop.join(to_the_end=True)
                if self._closing is not None and not self._closing.done():
                    await asyncio.wait({self._closing})
                if self.stopping is stop:
                    self.stopping = None
        finally:
            self._is_starting = False
        await self._replaced["start"]()
        if self.stopping is not None:
            # The subscriber was stopped during this start: stop what FastStream has started since.
            self.subscriber.running = False
            await self._replaced["stop"]()

    # -- what FastStream's loop calls ----------------------------------------------------------------------------

    async def get_msg(self, consumer: AIOKafkaConsumer) -> None:
        """Fetch records and start their tasks, up to as many as fit into one turn of the event loop; return None.

        FastStream's loop would call this and `consume_one` for each record, which takes longer.
        """
        if consumer is not self.consumer or (
            self.in_hand is not None and self.in_hand.driver is asyncio.current_task()
        ):
            # A loop of an earlier start, or one that was replaced.
            raise ConsumerStoppedError
        if not self._has_begun:
            self._has_begun, self._unstarted_since = True, None
            # FastStream would handle records in the context of its loop; but not if a handler has started the
            # subscriber.
            own = contextvars.copy_context() if current_record.get() is None else self.handler.background.context.copy()
            # The middleware sets the number of later attempts.
            own.run(subscribers.context_of(self.subscriber).set_local, ATTEMPT_KEY, 1)
            self.context = own
        fetch = self._original_get_msg
        try:
            for _ in range(self._turns.passes_per_turn):
                # Counting as polled, and no record is in hand meanwhile.
                while self._must_wait() and self.stopping is None:
                    await self._slots.wait_for_change(self._poll_pause_sec)
                    if self._must_wait():
                        await self._poll(consumer)
                if self.stopping is not None:
                    return
                self._consume(await fetch(consumer))
        except KafkaError as error:
            self._health.note_fetch_error(error, self.handler.now())
            raise
        # While records are buffered, neither FastStream's loop nor `getone` suspends.
        await self._turns.give_way()

    async def _poll(self, consumer: AIOKafkaConsumer) -> None:
        """Count as polled. An error of the group is raised here once, as by a fetch, and handled in the same way."""
        try:
            await consumer.getmany(_NO_PARTITION, timeout_ms=0)
        except KafkaError as error:
            self._health.note_fetch_error(error, self.handler.now())

    def _must_wait(self) -> bool:
        if self.share.is_full or self._loop_lag.is_late:
            return True
        # Without a committer, records would be handled again after the restart: fetch none. Where the library does not
        # commit, there is no window per partition, so `window` bounds the records of the subscriber.
        if self.commits:
            return not self._committer.is_alive
        return self.in_flight >= self.settings.window

    def _consume(self, raw: Any) -> None:
        """Admit a record (or batch) and start its task. Nothing is awaited between the fetch and the admission."""
        if self.stopping is not None or self.subscriber.consumer is None:
            # Fetched by a `getone` that was pending when the stop began: it is not admitted, so no commit passes it.
            return
        wanted, admissions, delivered = raw, (), raw
        if isinstance(raw, tuple):
            wanted, admissions, delivered = self._admit_batch(raw)
            if not wanted:
                return
        else:
            if self._committed is not None:
                admission = self._committed.admit(raw)
                if admission is None:
                    return
                admissions = (admission,)
            if raw.headers and (wanted := for_group(raw, self.subscriber.group_id)) is None:
                self.complete(admissions)
                return
        order_keys = () if self._is_unordered else self.order_keys_of(wanted)
        # By place: for each record, names cost as much as the rest of the call.
        self._submit(Record(wanted, self.process, self, admissions, order_keys, delivered))

    def _admit_batch(
        self, batch: Sequence[ConsumerRecord[Any, Any]]
    ) -> tuple[tuple[ConsumerRecord[Any, Any], ...], Sequence[Admission], tuple[ConsumerRecord[Any, Any], ...]]:
        """Return the records of a batch that are to be handled, their admissions, and these records as delivered."""
        wanted: list[ConsumerRecord[Any, Any]] = []
        admissions: list[Admission] = []
        delivered: list[ConsumerRecord[Any, Any]] = []
        for raw in batch:
            admitted: Sequence[Admission] = ()
            if self._committed is not None:
                admission = self._committed.admit(raw)
                if admission is None:
                    continue
                admitted = (admission,)
            readable = for_group(raw, self.subscriber.group_id)
            if readable is None:
                self.complete(admitted)
            else:
                wanted.append(readable)
                delivered.append(raw)
                admissions += admitted
        return tuple(wanted), admissions, tuple(delivered)

    def order_keys_of(self, raw: Any) -> Sequence[Hashable]:
        """Return the order keys of a record or batch of this subscriber."""
        return order_keys_of(self.settings.ordering, id(self), raw)

    def complete(self, admissions: Iterable[Admission]) -> None:
        """Mark admitted records as finished."""
        for admission in admissions:
            self._committer.complete(admission)

    # -- records that fail ---------------------------------------------------------------------------------------

    def has_logged(self, error: BaseException) -> bool:
        """Whether no traceback is to be logged: FastStream has logged it, or the exception is one of its signals."""
        return isinstance(error, IgnoredException) or subscribers.logs_failures(self.subscriber, error)

    def halt(self, record: Record, reason: str, error: BaseException | None = None) -> None:
        """Fetch nothing more of the record's partitions: it and the records behind it are delivered after a restart."""
        trace = None if error is None or self.has_logged(error) else error
        for each in record.admissions:
            if self._committed is not None and not each.is_fenced:
                self._committed.halt(each, reason)
                logger.error("%r has halted its partition: %s. A restart tries it again.", each, reason, exc_info=trace)

    async def dead_letter(self, record: Record, error: BaseException) -> None:
        """Publish the record, or each record of a batch, as a dead letter; return when all are acknowledged."""
        to = self.settings.on_failure.then
        if not isinstance(to, DeadLetter):
            raise TypeError(f"{to!r} is not a dead letter topic")
        raws = records_in(record.delivered)
        if len(raws) > 1:
            # Check the whole batch before the first is published, since a record that fails the check halts the
            # partition.
            self._dead_letters.check(raws, to)
        for raw in raws:
            headers = describe(raw, self.subscriber.group_id, error, record.attempt)
            await self._dead_letters.publish(raw, to, headers)
        logger.warning(
            "%r is a dead letter after attempt %d: %s",
            *(record, record.attempt, brief(error)),
            exc_info=None if self.has_logged(error) else error,
        )

    # -- a record that FastStream's own loop took before we were attached ------------------------------------------

    def _take_over(self, loop: asyncio.Task[Any], raw: Any, message: Any) -> None:
        """Admit the record or batch that FastStream's loop has in hand, and let a new loop fetch the next ones."""
        wanted, admissions, delivered = self._admit_batch(records_in(raw))
        if not wanted:
            # The middleware skips it.
            return
        if message is not None:
            self.guard(message)
        self.in_hand = call = InlineCall(raw, loop, message)
        kept = (wanted, delivered) if isinstance(raw, tuple) else (wanted[0], delivered[0])
        keys = self.order_keys_of(kept[0])
        call.submit(
            self.handler,
            Record(kept[0], call.process, source=self, admissions=admissions, order_keys=keys, delivered=kept[1]),
        )
        # The pass is over when the old loop calls `get_msg`, or when its task ends.
        loop.add_done_callback(self._is_superseded)
        # In the context of the initialisation: the running one may be that of the record that led to this.
        self.handler.background.context.copy().run(subscribers.replace_loop, self.subscriber, loop)

    def _is_superseded(self, loop: asyncio.Task[Any]) -> None:
        if not loop.cancelled():
            # Mark the exception as retrieved: the middleware has noted it.
            loop.exception()
        if self.in_hand is not None and self.in_hand.driver is loop:
            self.in_hand.end()
            self.in_hand = None

    def guard(self, message: StreamMessage[Any]) -> None:
        """Let `ack` and `nack` of a message that was parsed before this was attached neither commit nor seek."""
        if self.commits and self.consumer is not None:
            messages.detach_from_consumer(message, self.consumer)

    # -- stopping ------------------------------------------------------------------------------------------------

    async def stop(self, *, to_the_end: bool = False) -> bool:
        """Drain, commit, then stop the subscriber as FastStream does; replaces `subscriber.stop`.

        Takes at most a little more than `shutdown_timeout_sec`. Concurrent calls share one stop, which goes on when a
        caller is cancelled. If a record awaits this call, directly or not, the call returns False as soon as all other
        records have ended, because the rest of the stop waits for that record; not so with `to_the_end`.
        """
        self.subscriber.running = False
        if self.stopping is None or (self.stopping.task.done() and self.subscriber.consumer is not None):
            self.stopping = SharedStop(self._stop, f"kafka-stop {self.name}", self.handler.background)
        return await self.stopping.join(to_the_end=to_the_end)

    async def _stop(self, stop: SharedStop) -> None:
        handler, consumer = self.handler, self.subscriber.consumer
        deadline = handler.now() + handler.settings.shutdown_timeout_sec
        self._slots.wake_waiters()
        with Polling(consumer):
            await self._end_records(stop, deadline)
            if self.commits and consumer is not None:
                await self._committer.hold(consumer, timeout_sec=self._left_sec(deadline))
                if self.subscriber.partitions:
                    # Without members in the group nothing renews the committed offsets from now on: renew them once
                    # more.
                    self._committer.watch(consumer).renew()
                if not await self._committer.flush(consumer, timeout_sec=self._left_sec(deadline)):
                    logger.error("The last commit of %s failed: its records will be delivered again", self.name)
        if remaining := handler.records.matching(self._owns):
            self._let_outlive(remaining)
        # In a task of its own, which is never cancelled: a cancelled `consumer.stop()` leaves a ghost member in the
        # group.
        closing = self._closing = handler.background.create_task(self._close(), name=f"kafka-close {self.name}")
        await asyncio.wait({closing}, timeout=self._left_sec(deadline))
        if consumer is not None:
            # Only now: a rebalance while the consumer was leaving may have used the committer.
            self._left = self._committer.forget(consumer)
        if self in handler.sources and not self._is_starting:
            handler.sources.remove(self)
        if not closing.done():
            logger.error("%s is still leaving its group: the broker does not answer", self.name)
        elif not closing.cancelled() and (error := closing.exception()) is not None:
            raise error

    def _left_sec(self, deadline: float) -> float:
        """Return how long the next step of a stop may take."""
        return max(deadline - self.handler.now(), _LEAST_STOP_SEC)

    async def _end_records(self, stop: SharedStop, deadline: float) -> None:
        """Wait for the records that do not await this stop; then let the calls of the others return, and wait again."""
        handler = self.handler
        records, timeout_sec = handler.records, handler.settings.shutdown_timeout_sec

        def waiting() -> set[Record]:
            return stop.held_up_by(records)

        while True:
            if not await records.drain(self._owns, timeout_sec=self._left_sec(deadline), spared=waiting):
                spared = waiting()
                for record in await handler.runner.cancel(lambda each: self._owns(each) and each not in spared):  # noqa: B023 - awaited here
                    logger.error("Cancelled after %g s of shutdown, will be delivered again: %r", timeout_sec, record)
            if not stop.let_go(records):
                # Any records left await a start of the subscriber, which waits for the end of this stop.
                return

    def _let_outlive(self, records: Iterable[Record]) -> None:
        """Let records go on that await a start of the subscriber; if they are delivered again, their end counts."""
        for record in records:
            self._outlived_revoke.update((each, record) for each in record.admissions)
            subscribers.keep_from_cancelling(self.subscriber, record.pass_task)

    async def _close(self) -> None:
        # The records have ended, or were given up: FastStream need not wait for them.
        subscribers.skip_wait_for_records(self.subscriber)
        try:
            await self._replaced["stop"]()
        finally:
            await self._dead_letters.close()

    def stop_application(self) -> None:
        """Ask the application to end, as FastStream does when a handler raises SystemExit."""
        app = subscribers.context_of(self.subscriber).get("app")
        if callable(leave := getattr(app, "exit", None)):
            leave()
        elif app is not None:
            logger.warning("%s can't be ended by a handler: only %s is stopped", type(app).__name__, self.name)

    # -- reports -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The topics and the group of the subscriber, for logs and reports."""
        return f"subscriber {','.join(self.subscriber.topic_names)} (group {self.subscriber.group_id})"

    def sample(self) -> None:
        """Take a sample of the consumer's progress, for `problems`."""
        is_busy = self.stopping is not None or self._must_wait()
        blocked = {key: first.offset for key, first in self._blocked()}
        self._health.sample(self.handler.now(), is_busy=is_busy, blocked=blocked)

    def _blocked(self) -> Iterable[tuple[TopicPartition, Admission]]:
        """Return the partitions whose window is full, and the record behind which it is."""
        is_consuming = self._is_meant_to_run and self.subscriber.consumer is self.consumer
        return self._committed.blocked() if self._committed is not None and is_consuming else ()

    def problems(self) -> list[str]:
        """Say why records of this subscriber may not arrive, or not be finished."""
        now = self.handler.now()
        if not self._is_meant_to_run:
            since, limit_sec = self._unstarted_since, self.handler.settings.stall_timeout_sec
            if since is None or self.stopping is not None or not 0 < limit_sec <= now - since:
                return []
            return [f"{self.name} has not been started for {now - since:.0f} s"]
        return [*self._health.problems(now), *self._blockages(now), *self._dead_letters.problems()]

    def _blockages(self, now: float) -> Iterator[str]:
        """Describe the partitions whose window has been full for too long, and the record behind which it is."""
        blocked = dict(self._blocked())
        for key, offset, age_sec in self._health.blocked(now):
            if (first := blocked.get(key)) is not None and first.offset == offset:
                record = next((each for each in self.handler.records if first in each.admissions), None)
                where = "" if record is None else f", {record.whereabouts()}"
                yield (
                    f"{key.topic}[{key.partition}] has got nothing for {age_sec:.0f} s: its window is full, behind the "
                    f"record at {offset}, which came {now - first.admitted_at:.0f} s ago and is not done{where}"
                )

    def deaths(self) -> list[str]:
        """Name the tasks that have ended and that only a restart of the process brings back."""
        return self._health.deaths() if self._is_meant_to_run else []

    @property
    def _is_meant_to_run(self) -> bool:
        return self.subscriber.running and self.stopping is None and subscribers.is_real(self.subscriber)
