"""`KafkaConcurrentHandler`: starts and stops the committer, the observer and all sources; `handle_task`."""

import asyncio
import contextvars
import itertools
import logging
import os
import threading
import weakref
from collections import Counter
from collections.abc import Collection, Coroutine
from typing import Any, ClassVar, Protocol, Self

from aiokafka import TopicPartition
from faststream.message import StreamMessage
from typing_extensions import Unpack

from faststream_concurrent_kafka._kafka_types import AnyRecord
from faststream_concurrent_kafka._record.in_flight import InFlight
from faststream_concurrent_kafka._record.record import (
    Outcome,
    Record,
    RecordSource,
    Stop,
    current_record,
    is_interrupt,
    records_in,
)
from faststream_concurrent_kafka._record.runner import Runner
from faststream_concurrent_kafka._record.slots import Slots
from faststream_concurrent_kafka._record.threads import Threads
from faststream_concurrent_kafka._record.time_limit import TimeLimits
from faststream_concurrent_kafka._record.topic_group import for_group
from faststream_concurrent_kafka._runtime.background import Background
from faststream_concurrent_kafka._runtime.collector import Collector, hint_at_tuning
from faststream_concurrent_kafka._runtime.lasting import Lasting
from faststream_concurrent_kafka._runtime.loop_lag import LoopLag
from faststream_concurrent_kafka._runtime.signals import SignalGuard
from faststream_concurrent_kafka._runtime.turns import Turns
from faststream_concurrent_kafka._upstream.consumers import group_id
from faststream_concurrent_kafka._upstream.messages import consumer_of
from faststream_concurrent_kafka.batch_committer import KafkaBatchCommitter, KafkaCommitTask
from faststream_concurrent_kafka.errors import SettingsError, SetupError
from faststream_concurrent_kafka.settings import Options, Settings


logger: logging.Logger = logging.getLogger("faststream_concurrent_kafka")

# The seconds between two ticks of the slots (or `observer_interval`, if that is longer).
_TICK_SEC = 1.0
# The warning about handlers that take long is repeated after this.
HUNG_AGAIN_SEC = 3600.0
_MOST_SAMPLED = 1000
_MOST_PLACES = 5
# An event loop that has been blocked for so long counts as dead.
STUCK_AFTER_SEC = 60.0


class User(Protocol):
    """An application (or a broker without one) that has initialised concurrent processing."""

    @property
    def context(self) -> Any:
        """FastStream's context, which identifies the user."""
        ...

    def discover(self) -> list[str]:
        """Attach its subscribers that are not attached yet; return the problems of their setup."""
        ...

    def owns(self, source: RecordSource) -> bool:
        """Whether a source is stopped with this user."""
        ...


class KafkaConcurrentHandler:
    """Handles records concurrently: one asyncio task per record, at most `concurrency_limit` at once.

    A singleton per process: constructed again with the same settings, or without any, it is the same object. Use
    `initialize_concurrent_processing` to make and start it.

    Raises:
        SettingsError: a setting is not allowed.
        SetupError: the handler exists already with other settings; or it does not exist, and no setting is given.

    """

    _instance: ClassVar["KafkaConcurrentHandler | None"] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _initialized: bool = False

    def __new__(cls, **options: Unpack[Options]) -> Self:
        """Return the one instance."""
        with cls._lock:
            if not options and cls._instance is None:
                raise SetupError(
                    "there is no KafkaConcurrentHandler in this process: call initialize_concurrent_processing() in "
                    "the lifespan, or give KafkaConcurrentHandler its settings, such as concurrency_limit=100",
                )
            if not isinstance(cls._instance, cls):
                cls._instance = super().__new__(cls)
            return cls._instance

    def __init__(self, **options: Unpack[Options]) -> None:
        if not options:
            # The existing instance: `__new__` has returned it.
            return
        with self._lock:
            try:
                settings = Settings.of(**options)
            except Exception:
                if not self._initialized:
                    KafkaConcurrentHandler._instance = None
                raise
            if self._initialized:
                if settings != self.settings:
                    raise SetupError(
                        "concurrent processing is initialised already with other settings: "
                        f"{self.settings.differences(settings)}. Call stop_concurrent_processing() first.",
                    )
                return
            self._initialized = True
        self.settings = settings
        self.committer: KafkaBatchCommitter = KafkaBatchCommitter(
            # At most half a window, or a partition could be paused before a commit is due.
            commit_batch_size=min(settings.commit_batch_size, max(1, settings.window // 2)),
            commit_batch_timeout_sec=settings.commit_batch_timeout_sec,
            commit_failure_timeout_sec=settings.commit_failure_timeout_sec,
            commit_renewal_sec=settings.commit_renewal_sec,
            commit_metadata=settings.commit_metadata,
        )
        # The sources that run, or whose stop has not ended. `attached` holds the others only weakly.
        self.sources: list[RecordSource] = []
        self.attached: weakref.WeakSet[RecordSource] = weakref.WeakSet()
        # The users that have initialised it, by context.
        self.users: dict[Any, User] = {}
        self._setup_problems: list[str] = []
        self.knows_all_brokers = True
        """Whether every user has named its brokers."""
        # Without a concurrency limit and a window of uncommitted records, this bounds memory.
        unlimited = float("inf") if settings.enable_batch_commit else settings.window
        self.slots: Slots = Slots(settings.concurrency_limit, unlimited)
        self.runner: Runner = Runner(settings, self.slots, self.committer.complete)
        self.records: InFlight = self.runner.records
        self.time_limits: TimeLimits = TimeLimits()
        self.turns: Turns = self.runner.turns
        self._threads = Threads(settings.concurrency_limit)
        self._collector = Collector()
        self.loop_lag: LoopLag = LoopLag(self.turns)
        self._observer: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._signals = SignalGuard(self._stop_sources)
        self._known_problems: list[str] = []
        self._busy: Lasting[str, int] = Lasting(settings.stall_timeout_sec)
        self._hung_at = float("-inf")
        self._loop: asyncio.AbstractEventLoop
        self._thread: int
        # When the observer last ran.
        self._observed_at: float
        self.background: Background
        """Creates all tasks of the library; set by `start`."""

    # -- life ----------------------------------------------------------------------------------------------------

    @classmethod
    def running(cls) -> "KafkaConcurrentHandler | None":
        """Return the handler of this process, if it is started."""
        instance = cls._instance
        return instance if instance is not None and instance.is_running else None

    @property
    def is_running(self) -> bool:
        """Whether the handler was started, in an event loop that is still open, and not stopped since."""
        return self._initialized and self._observer is not None and not self._loop.is_closed()

    def start(self) -> None:
        """Start the committer, the observer and the signal handlers in the running loop; a second call does nothing.

        Raises:
            SetupError: it runs in another event loop that is still open.

        """
        loop = asyncio.get_running_loop()
        if self._observer is not None:
            if loop is not self._loop:
                raise SetupError("concurrent processing runs in another event loop: stop it there first")
            return
        self._loop = loop
        for doubt in self.settings.doubts():
            logger.warning("%s", doubt)
        self.background = Background(loop)
        self.runner.start(self.background, loop)
        self._threads.start()
        self.loop_lag.start(loop)
        if self.settings.enable_batch_commit:
            self.committer.spawn()
        self._thread = threading.get_ident()
        self._observed_at = loop.time()
        self._observer = self.background.create_task(self._observe(), name="kafka-concurrent-observer")
        self._signals.install(loop)
        if self.settings.tune_gc:
            self._collector.tune()
        else:
            hint_at_tuning(self.settings.concurrency_limit)

    async def stop(self) -> None:
        """Stop every running subscriber (drain, commit, leave the group), then the tasks of the handler.

        Takes at most a little more than `shutdown_timeout_sec`. Safe to call twice; when the call is cancelled, the
        stop goes on. If a record awaits this call, it returns when all other records have ended, because the rest of
        the stop waits for that record.
        """
        if self._observer is None:
            return
        if self._stopping is None:
            self._stopping = self.background.create_task(self._stop(), name="kafka-concurrent-stop")
        stopping = self._stopping
        ends = await asyncio.gather(*(source.stop() for source in self.sources), return_exceptions=True)
        if False not in ends:
            await asyncio.shield(stopping)

    async def release(self, user: User) -> None:
        """Stop and detach the subscribers of one user; after the last user, stop the handler. Otherwise like `stop`."""
        releasing = self.background.start_helper(self._release(user))
        ends = await asyncio.gather(
            *(source.stop() for source in self.attached if user.owns(source)), return_exceptions=True
        )
        if False not in ends:
            await asyncio.shield(releasing)

    async def _release(self, user: User) -> None:
        sources = [source for source in self.attached if user.owns(source)]
        await self._stop_to_the_end(sources)
        for source in sources:
            source.detach()
            self.attached.discard(source)
        self.users.pop(user.context, None)
        if not self.users:
            await self.stop()

    async def _stop(self) -> None:
        try:
            deadline = self.now() + self.settings.shutdown_timeout_sec
            await self._stop_sources()
            # The records of `handle_task`.
            await self.records.drain(lambda record: record.source is None, timeout_sec=deadline - self.now())
            await self.runner.cancel(lambda _: True)
            await self.committer.close()
        finally:
            if self._observer is not None:
                self._observer.cancel()
            self._observer = None
            self._threads.stop()
            self.discard()

    def discard(self) -> None:
        """Detach all subscribers, restore signal handlers, and let the next initialisation make a new handler."""
        self._signals.uninstall()
        self._collector.restore()
        self.loop_lag.stop()
        for source in {*self.sources, *self.attached}:
            source.detach()
        self.sources.clear()
        self.attached.clear()
        with self._lock:
            if KafkaConcurrentHandler._instance is self:
                KafkaConcurrentHandler._instance = None

    @classmethod
    def _after_fork(cls) -> None:
        """Discard the parent's handler in a forked child, where its tasks and threads do not run."""
        # Another thread of the parent may have held the lock.
        cls._lock = threading.Lock()
        if (inherited := cls._instance) is not None:
            inherited._observer = None  # noqa: SLF001 - its own class
            # A new one, because the parent's thread does not exist here, and may have held the lock of its event.
            inherited.loop_lag = LoopLag(inherited.turns)
            inherited.discard()

    async def _stop_sources(self) -> None:
        ended: set[Stop | None] = set()
        # In a loop: while these stop, a source may be attached by its first record, or started again by a record.
        while sources := [source for source in self.sources if source.stopping not in ended]:
            await self._stop_to_the_end(sources)
            ended.update(source.stopping for source in sources)
            # A source that is being started again has no stop.
            ended.discard(None)

    @staticmethod
    async def _stop_to_the_end(sources: Collection[RecordSource]) -> None:
        results = await asyncio.gather(*(source.stop(to_the_end=True) for source in sources), return_exceptions=True)
        for source, error in zip(sources, results, strict=True):
            if isinstance(error, BaseException):
                logger.error("Stopping %s failed", source.name, exc_info=error)

    def serve(self, user: User) -> None:
        """Attach a user's subscribers now, and those declared later from time to time."""
        self._setup_problems += user.discover()
        self.users[user.context] = user

    def discover(self) -> None:
        """Attach subscribers that were declared since the last call."""
        problems: list[str] = []
        for user in tuple(self.users.values()):
            try:
                problems += user.discover()
            except (SetupError, SettingsError) as error:
                problems.append(str(error))
        self._setup_problems = list(dict.fromkeys(problems))

    def now(self) -> float:
        """Return the time of the event loop's clock, in seconds."""
        return self._loop.time()

    # -- records -------------------------------------------------------------------------------------------------

    async def handle_task(
        self, coroutine: Coroutine[Any, Any, Any], record: AnyRecord, kafka_message: StreamMessage[Any]
    ) -> None:
        """Fire and forget a coroutine that handles a raw record: it runs in an asyncio task as soon as there is a slot.

        For records that FastStream passes to no handler: those of `subscriber.get_one()`, of `async for`, or of a
        consumer of your own. Call it in delivery order. The coroutine runs once, in a copy of the caller's context; if
        it raises, the error is logged and the record is done. With `enable_batch_commit` the offset is committed only
        after the coroutine has ended; a cancelled task leaves its record undone, and no commit passes it. If the
        handler of this very record calls this, the record is committed when that handler ends.

        A record whose `topic_group` names another group is done at once, without running the coroutine. Returns when
        the task is scheduled; while `max_uncommitted_tasks` of these tasks have not ended, waits until one ends. A
        coroutine that does not run is closed, also when this call is cancelled. A stop waits for these tasks as for
        other records, and commits their offsets: stop a consumer of your own after `stop_concurrent_processing`.

        Raises:
            SetupError: the handler is not started, or has been stopped.
            CommitterIsDeadError: the committer's main task has died.

        """
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self._require_running()
            consumer = consumer_of(kafka_message)
            group = None if consumer is None else group_id(consumer)
            own = current_record.get()
            own_records = () if own is None else (*records_in(own.raw), *records_in(own.delivered))
            is_admitted = any(each is record for each in own_records)
            if self.settings.enable_batch_commit and group is not None and not is_admitted:
                place = TopicPartition(record.topic, record.partition)
                await self.committer.send_task(
                    KafkaCommitTask(asyncio_task=ended, topic_partition=place, offset=record.offset, consumer=consumer)
                )
            if consumer is not None and for_group(record, group) is None:
                ended.set_result(None)
                coroutine.close()
                return
            while self.slots.unshared.reserved >= self.settings.window:
                await self.slots.wait_for_change(_TICK_SEC)
                self._require_running()
        except BaseException:
            ended.cancel()
            coroutine.close()
            raise

        async def process(_raw: Any) -> None:
            try:
                await coroutine
            except BaseException as error:
                task: Any = asyncio.current_task()
                if is_interrupt(error) or (isinstance(error, asyncio.CancelledError) and task.cancelling()):
                    raise
                logger.exception("%s[%d]@%d has failed, and is done", record.topic, record.partition, record.offset)
            ended.set_result(None)

        def close(_task: asyncio.Task[None]) -> None:
            # In case the task was cancelled before its first step.
            coroutine.close()
            ended.cancel()

        context = contextvars.copy_context()
        task: Any = self.runner.submit(Record(record, process, context=context))
        task.add_done_callback(close, context=self.background.context)

    def _require_running(self) -> None:
        if not self.is_running:
            raise SetupError("concurrent processing is not running: call initialize_concurrent_processing(context)")

    # -- observer ------------------------------------------------------------------------------------------------

    async def _observe(self) -> None:
        interval_sec = self.settings.observer_interval
        samples_per_tick = max(1, round(_TICK_SEC / interval_sec))
        for sample in itertools.count(1):
            await asyncio.sleep(interval_sec)
            self._observed_at = self.now()
            if sample % samples_per_tick == 0:
                self.slots.tick()
            self._check_tasks_health()

    def _check_tasks_health(self) -> None:
        """Log new problems, settle records whose task was cancelled before it began, and attach new subscribers."""
        if self._stopping is not None:
            return
        for record in self.records.matching(lambda each: each.task is not None and each.task.done()):
            # Other code has cancelled the task before its first step, so its `finally` never ran.
            self.runner.leave(record, Outcome.NOT_DONE)
        for source in self.sources:
            source.sample()
        self.committer.renew()
        self._log_hung_handlers()
        self.discover()
        problems = self.problems()
        if problems and not self._known_problems:
            logger.error("Unhealthy: %s", "; ".join(problems))
        if self._known_problems and not problems:
            logger.warning("Healthy again")
        self._known_problems = problems

    def _log_hung_handlers(self) -> None:
        """Log where the handlers are waiting if all slots have been taken for long, and none was released.

        Health stays green: handlers that take ten minutes can't be distinguished from handlers that hang.
        """
        now = self.now()
        self._busy.sample({"slots": self.slots.released} if self.slots.is_full else {}, now)
        for _, _, age_sec in self._busy.for_long(now):
            if now - self._hung_at >= HUNG_AGAIN_SEC:
                places = Counter(f"are {each.whereabouts()}" for each in itertools.islice(self.records, _MOST_SAMPLED))
                logger.warning(
                    "All %g slots are taken, and none was released for %.0f s. Of the records, %s",
                    self.slots.overall.most_reserved,
                    age_sec,
                    ", ".join(f"{count} {place}" for place, count in places.most_common(_MOST_PLACES)),
                )
                self._hung_at = now

    @property
    def is_healthy(self) -> bool:
        """Whether records are being taken, handled and committed: what `is_kafka_handler_healthy` says."""
        return self.is_running and not self.problems()

    def problems(self) -> list[str]:
        """Say why the handler is not healthy; empty when it is healthy."""
        if self._observer is None:
            return ["concurrent processing is not initialised"]
        problems = self._deaths_of_its_own(self._observer)
        if self._stopping is not None:
            problems.append("concurrent processing is stopping")
        if self.settings.enable_batch_commit:
            problems += self.committer.problems()
        problems += [
            f"{topic}[{partition}]@{ledger.stopped_at} has halted its partition: {ledger.stopped_because}. "
            "A restart tries it again."
            for topic, partition, ledger in self.committer.partitions()
            if ledger.stopped_at is not None
        ]
        problems += self._setup_problems + self.time_limits.problems(self.now()) + self.loop_lag.problems()
        sources = dict.fromkeys((*self.sources, *self.attached))
        return problems + [problem for source in sources for problem in source.problems()]

    def deaths(self) -> list[str]:
        """Name the tasks that have ended and that only a restart of the process brings back; empty during a stop.

        May be asked from any thread.
        """
        observer = self._observer
        if observer is None or self._stopping is not None:
            return []
        deaths = self._deaths_of_its_own(observer) + self.committer.deaths()
        return deaths + [death for source in list(self.sources) for death in source.deaths()]

    def _deaths_of_its_own(self, observer: asyncio.Task[None]) -> list[str]:
        if self._loop.is_closed():
            return ["its event loop was closed without a stop"]
        if observer.done():
            return ["the observer has died"]
        # A call in the loop's own thread proves that the loop runs.
        overdue_sec = self.now() - self._observed_at - self.settings.observer_interval
        stuck_sec = 0.0 if threading.get_ident() == self._thread else overdue_sec
        return [f"the event loop has been blocked for {stuck_sec:.0f} s"] if stuck_sec >= STUCK_AFTER_SEC else []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=KafkaConcurrentHandler._after_fork)  # noqa: SLF001 - this module's own
