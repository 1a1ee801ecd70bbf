"""`KafkaConcurrentHandler`: the one creator of record tasks, and the keeper of everything that runs beside them."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Self

from faststream.exceptions import StopConsume

from faststream_concurrent_kafka.batch_committer import KafkaBatchCommitter
from faststream_concurrent_kafka.errors import SetupError
from faststream_concurrent_kafka.records import Outcome, Record, RecordSource, current_record, outcome_of
from faststream_concurrent_kafka.settings import Settings
from faststream_concurrent_kafka.signals import SignalGuard
from faststream_concurrent_kafka.slots import Slots


logger = logging.getLogger(__package__)

# A record that was not acknowledged is handled again after this: long enough not to spin, short enough to be "now".
NACK_DELAY_SEC = 0.5
HEALTH_CHECK_INTERVAL_SEC = 1.0
# For handlers that go on after they were cancelled: they are cancelled again until this has passed.
CANCELLATION_GRACE_SEC = 1.0


class KafkaConcurrentHandler:
    """Handles records concurrently: one asyncio task per record, at most `concurrency_limit` at once.

    A singleton per process: constructing it again with the same settings gives the same object. Use
    `initialize_concurrent_processing` rather than this class.

    Raises:
        SettingsError: a setting is not allowed.
        SetupError: the handler exists already with other settings.

    """

    _instance: ClassVar["KafkaConcurrentHandler | None"] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _initialized: bool = False

    def __new__(cls, **options: Any) -> Self:  # noqa: ARG004 - __init__ takes them
        """Return the one instance."""
        with cls._lock:
            if not isinstance(cls._instance, cls):
                cls._instance = super().__new__(cls)
            return cls._instance

    def __init__(self, **options: Any) -> None:
        with self._lock:
            try:
                settings = Settings(**options)
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
        self.committer = KafkaBatchCommitter(
            # Never wait for more than half a window, or a partition would be paused while its commit is not due.
            commit_batch_size=min(settings.commit_batch_size, max(1, settings.max_uncommitted_tasks // 2)),
            commit_batch_timeout_sec=settings.commit_batch_timeout_sec,
            commit_failure_timeout_sec=settings.commit_failure_timeout_sec,
        )
        self.sources: list[RecordSource] = []
        self._discoveries: list[Callable[[], None]] = []
        self._in_flight: set[Record] = set()
        self._helpers: set[asyncio.Task[None]] = set()
        # Without a limit of its own or a window of uncommitted records, something else has to bound memory.
        unlimited = float("inf") if settings.enable_batch_commit else settings.max_uncommitted_tasks
        self.slots = Slots(settings.concurrency_limit, unlimited)
        self._observer: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._signals = SignalGuard(self._stop_sources)
        self._known_problems: list[str] = []
        self._loop: asyncio.AbstractEventLoop

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
        """Start the committer, the observer and the signal handlers in the running loop; twice does nothing.

        Raises:
            SetupError: it runs in another event loop that is still open.

        """
        loop = asyncio.get_running_loop()
        if self._observer is not None:
            if loop is not self._loop:
                raise SetupError("concurrent processing runs in another event loop: stop it there first")
            return
        self._loop = loop
        if self.settings.enable_batch_commit:
            self.committer.spawn()
        self._observer = loop.create_task(self._observe(), name="kafka-concurrent-observer")
        self._signals.install(loop)

    async def stop(self) -> None:
        """Stop every attached subscriber (drain, commit, leave the group), then everything of the handler.

        Takes `shutdown_timeout_sec` and a little. Safe to call twice; when cancelled, the stop goes on.
        """
        if self._observer is None:
            return
        if self._stopping is None:
            self._stopping = self._loop.create_task(self._stop(), name="kafka-concurrent-stop")
        record = current_record.get()
        if record is None or record.task.done():
            await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        try:
            await self._stop_sources()
            await self.cancel(lambda _: True)
            await self.committer.close()
        finally:
            if self._observer is not None:
                self._observer.cancel()
            self._observer = None
            self.discard()

    def discard(self) -> None:
        """Let go of subscribers and signals, and let the next initialisation make a new handler."""
        self._signals.uninstall()
        for source in self.sources:
            source.detach()
        self.sources.clear()
        with self._lock:
            if KafkaConcurrentHandler._instance is self:
                KafkaConcurrentHandler._instance = None

    async def _stop_sources(self) -> None:
        # As they are now: one more may be attached, by its first record, while these stop.
        sources = list(self.sources)
        results = await asyncio.gather(*(source.stop() for source in sources), return_exceptions=True)
        for source, error in zip(sources, results, strict=True):
            if isinstance(error, BaseException):
                logger.error("Stopping %s failed", source.name, exc_info=error)

    def add_discovery(self, discover: Callable[[], None]) -> None:
        """Have `discover` called from time to time: it attaches subscribers that were declared meanwhile."""
        self._discoveries.append(discover)

    def now(self) -> float:
        """Seconds of the event loop's clock."""
        return self._loop.time()

    # -- records -------------------------------------------------------------------------------------------------

    def handle_task(self, record: Record) -> asyncio.Task[None]:
        """Fire off the task that owns the record to its end; the task itself never raises."""
        self._in_flight.add(record)
        self.slots.claim()
        task = record.task = self._loop.create_task(self._own(record))
        return task

    async def _own(self, record: Record) -> None:
        current_record.set(record)
        semaphore = self.slots.semaphore
        outcome = Outcome.NOT_DONE
        try:
            while True:
                if semaphore is not None:
                    await semaphore.acquire()
                record.begin()
                try:
                    await record.process(record.raw)
                except BaseException as error:  # noqa: BLE001 - FastStream has logged it; here its meaning is decided
                    outcome = self._outcome_of_failure(record, error)
                else:
                    outcome = outcome_of(record, None)
                finally:
                    record.is_running = False
                    if semaphore is not None:
                        semaphore.release()
                if outcome is not Outcome.AGAIN:
                    break
                outcome = Outcome.NOT_DONE
                if record.is_last_pass:
                    break
                await self._sleep(record)
        except asyncio.CancelledError:
            # While it waited for its slot or slept: its pass was not called, so it is not done.
            pass
        finally:
            # A finished task keeps its context: without this, record, task and context would be a cycle, and every
            # record would have to wait for the garbage collector.
            current_record.set(None)
            self._settle(record, outcome)

    def _outcome_of_failure(self, record: Record, error: BaseException) -> Outcome:
        if isinstance(error, StopConsume | SystemExit):
            self._stop_source(record, error)
            return Outcome.DONE
        if isinstance(error, asyncio.CancelledError):
            # A handler may raise it by itself, or leak it from a task that it awaited: a failure like any other.
            # Only a cancellation of this task leaves its record undone.
            return Outcome.NOT_DONE if record.task.cancelling() else outcome_of(record, error)
        if not isinstance(error, Exception):
            raise error
        return outcome_of(record, error)

    def _stop_source(self, record: Record, error: BaseException) -> None:
        """Do what FastStream's `consume` does with these two, without waiting: the stop waits for this record."""
        if record.source is None:
            return
        self.start_helper(record.source.stop())
        if isinstance(error, SystemExit):
            # Not here: what the application makes of it must not become a matter of this record.
            self._loop.call_soon(record.source.stop_application)

    def start_helper(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the records, in a task that is kept and whose failure is logged."""
        helper = self._loop.create_task(work, name="kafka-concurrent-helper")
        self._helpers.add(helper)
        helper.add_done_callback(self._helper_ended)

    def _helper_ended(self, helper: asyncio.Task[None]) -> None:
        self._helpers.discard(helper)
        if not helper.cancelled() and (error := helper.exception()) is not None:
            logger.error("Failed beside the records", exc_info=error)

    async def _sleep(self, record: Record) -> None:
        record.is_sleeping = True
        self.slots.give_up_claim()
        try:
            await asyncio.sleep(NACK_DELAY_SEC)
        finally:
            self.slots.claim()
            record.is_sleeping = False

    def _settle(self, record: Record, outcome: Outcome) -> None:
        if record not in self._in_flight:
            return
        self._in_flight.discard(record)
        self.slots.give_up_claim()
        if outcome is Outcome.DONE:
            for commit in record.commits:
                self.committer.complete(commit)
        elif not (record.is_cancelled or record.is_last_pass):
            logger.error("The task of %r was cancelled by somebody else: its partition stays uncommitted there", record)

    @property
    def in_flight(self) -> int:
        """Records whose task has not ended."""
        return len(self._in_flight)

    @property
    def waiting(self) -> int:
        """Records in flight that are not being handled: they wait for a slot, or to be handled again."""
        return sum(not record.is_running for record in self._in_flight)

    # -- draining ------------------------------------------------------------------------------------------------

    def records(self, belongs: Callable[[Record], bool]) -> list[Record]:
        """Return the records in flight that `belongs` accepts."""
        return [record for record in self._in_flight if belongs(record)]

    async def drain(self, belongs: Callable[[Record], bool], *, timeout_sec: float) -> bool:
        """Wait until no such record is in flight, at most `timeout_sec`; return whether that was reached.

        A record that was not acknowledged is not handled again here: it stays undone, for whoever comes next.
        """
        deadline = self._loop.time() + timeout_sec
        while records := self.records(belongs):
            for record in records:
                record.is_last_pass = True
                if record.is_sleeping:
                    record.task.cancel()
            remaining = deadline - self._loop.time()
            if remaining <= 0:
                return False
            await asyncio.wait({record.task for record in records}, timeout=remaining)
        return True

    async def cancel(self, belongs: Callable[[Record], bool]) -> list[Record]:
        """Cancel such records and wait for them, a moment longer than a swallowed cancellation; return them."""
        cancelled = self.records(belongs)
        deadline = self._loop.time() + CANCELLATION_GRACE_SEC
        running = cancelled
        while running and self._loop.time() < deadline:
            for record in running:
                record.is_cancelled = True
                record.task.cancel()
            await asyncio.wait({record.task for record in running}, timeout=CANCELLATION_GRACE_SEC / 5)
            running = [record for record in running if not record.task.done()]
        for record in running:
            logger.error("Was cancelled and goes on: %r. A handler must not swallow CancelledError.", record)
        for record in cancelled:
            # A task that was cancelled before its first step never ran its own `finally`.
            self._settle(record, Outcome.NOT_DONE)
        return cancelled

    # -- observer ------------------------------------------------------------------------------------------------

    async def _observe(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_CHECK_INTERVAL_SEC)
            self._check_tasks_health()

    def _check_tasks_health(self) -> None:
        """Log what has gone wrong since the last look, and attach subscribers that were declared meanwhile."""
        if self._stopping is not None:
            return
        problems = self.problems()
        for discover in self._discoveries:
            try:
                discover()
            except SetupError as error:
                problems.append(str(error))
        if problems and not self._known_problems:
            logger.error("Unhealthy: %s", "; ".join(problems))
        if self._known_problems and not problems:
            logger.warning("Healthy again")
        self._known_problems = problems

    def problems(self) -> list[str]:
        """Say why the handler is not healthy; empty when it is."""
        if self._observer is None:
            return ["concurrent processing is not initialised"]
        problems = ["the observer has died"] if self._observer.done() else []
        if self._stopping is not None:
            problems.append("concurrent processing is stopping")
        if self.settings.enable_batch_commit:
            problems += self.committer.problems()
        return problems + [problem for source in self.sources for problem in source.problems()]
