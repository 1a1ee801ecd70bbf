"""One process of the group: the real FastStream broker and library, with a simulated consumer."""

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar

from fast_depends import Provider
from faststream import BaseMiddleware
from faststream.exceptions import NackMessage, RejectMessage
from faststream.kafka import KafkaBroker
from pydantic import ValidationError
from typing_extensions import override

from faststream_concurrent_kafka import (
    HandlerTimeoutError,
    KafkaConcurrentHandler,
    KafkaConcurrentProcessingMiddleware,
    get_kafka_handler_report,
    initialize_concurrent_processing,
    is_kafka_handler_healthy,
    stop_concurrent_processing,
)
from tests.integration.helpers import consuming
from tests.simulation.kafka import GROUP, TOPIC, SimulatedConsumer, SimulatedKafka
from tests.simulation.loops import Clock, ProcessLoop
from tests.simulation.member_oracle import MemberOracle, Pass, number_of
from tests.simulation.oracle import Oracle
from tests.simulation.plan import NACK_DELAY_SEC, SWALLOWS_SEC, Plan, Script, options_of


_EXACT_SEC = 1e-6
# If the record is run again, its handler does the same again.
_MOST_STOPS_FROM_WITHIN = 2


class HandlingError(Exception):
    """The exception of a handler, by its script."""


class PanicError(BaseException):
    """A handler's exception that is no `Exception`, as raised by Rust extensions."""


_OF_HANDLERS = (
    HandlingError,
    PanicError,
    GeneratorExit,
    PermissionError,
    ValidationError,
    NackMessage,
    HandlerTimeoutError,
    asyncio.CancelledError,
)


class Member:
    """A process, from its start to its end."""

    def __init__(self, plan: Plan, oracle: Oracle, kafka: SimulatedKafka, clock: Clock, name: str) -> None:
        self.name = name
        self.loop = ProcessLoop(clock)
        self.oracle = MemberOracle(oracle, name, lambda: self.loop.turns)
        self.loop.set_exception_handler(self._complain)
        # The KafkaConcurrentHandler of this process.
        self.singleton: KafkaConcurrentHandler | None = None
        self.handler: KafkaConcurrentHandler | None = None
        self.consumer: SimulatedConsumer | None = None
        self.is_running = False
        self.has_ended = False
        self.ended_at = 0.0
        self.was_calm = False
        self._plan = plan
        self._oracle = oracle
        self._kafka = kafka
        self._broker: KafkaBroker | None = None
        self._stop_wanted: asyncio.Future[bool] = self.loop.create_future()
        self._main = self.loop.create_task(self._live(), name="main")

    def _complain(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.oracle.violated("no error goes unnoticed", context["message"], repr(context.get("exception")))

    def logs(self, record: logging.LogRecord) -> None:
        """Note a log line: a traceback is a fault of the library, unless it is that of a handler's error."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None and not isinstance(error, _OF_HANDLERS) and not self.oracle.is_broken:
            self.oracle.violated("no traceback", record.getMessage(), repr(error))
        self.oracle.note("logs", record.levelname, record.getMessage())

    # -- life ------------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        watching = type("Watching", (_Watching,), {"member": self})
        middlewares: list[Any] = [watching, KafkaConcurrentProcessingMiddleware]
        self._broker = broker = KafkaBroker(
            ["simulated"], consumer_only=True, middlewares=middlewares, logger=None, provider=Provider()
        )
        consuming(broker, TOPIC, group=GROUP)(self.handle)
        await broker.connect()
        # Replaces the function that makes consumers; `connect` has set aiokafka's.
        config: Any = broker.config.broker_config
        config.builder = self._make_consumer
        if not (after_sec := self._plan.initialises_after_sec):
            await self._initialize(broker)
        await broker.start()
        if after_sec:
            await asyncio.sleep(after_sec)
            await self._initialize(broker)
        self.is_running = True
        self.oracle.note("runs")
        by_broker = await self._stop_wanted
        if not self.oracle.is_stopping:
            self.oracle.stopping()
        began = self.loop.time()
        if by_broker:
            await broker.stop()
        await stop_concurrent_processing(broker.context)
        took_sec = self.loop.time() - began
        self.was_calm = self.oracle.stopped()
        if took_sec > self._plan.settings.shutdown_timeout_sec + 4:
            self.oracle.violated("a stop is bounded", took_sec)
        self.has_ended, self.ended_at = True, self.loop.time()

    async def _initialize(self, broker: KafkaBroker) -> None:
        self.handler = await initialize_concurrent_processing(
            broker.context, broker=broker, **options_of(self._plan.settings)
        )

    def _make_consumer(self, **options: Any) -> SimulatedConsumer:
        self.consumer = SimulatedConsumer(self._kafka, self.oracle, self._plan, **options)
        return self.consumer

    def stop(self, *, by_broker: bool) -> None:
        """Begin a clean stop."""
        self.is_running = False
        self._stop_wanted.set_result(by_broker)

    def crash(self) -> None:
        """Crash: no code of this process runs any more."""
        self.oracle.note("crashes")
        self.is_running = False
        self.oracle.is_gone = True

    def leftovers(self) -> list[str]:
        """Describe what the library still remembers when it is idle."""
        handler, consumer = self.handler, self.consumer
        if handler is None or consumer is None or self._broker is None:
            return []
        walls = self._oracle.walls()
        assigned = consumer.assignment()
        mine = sorted(tp for tp in assigned if tp.partition not in walls)
        offsets = handler.committer.watch(consumer)
        left = []
        for tp in mine:
            ledger, redeliverable = offsets.partition(tp).ledger, offsets.partition(tp).redeliverable
            if ledger is not None and redeliverable is not None:
                left.append(f"{len(redeliverable)} of {tp.partition} may come back")
            if ledger is not None and (ledger.window or ledger.unfinished):
                left.append(f"{ledger.window} entries of {tp.partition}, {ledger.unfinished} unfinished")
        if len(mine) == len(assigned):
            left += [f"{name}: {count}" for name, count in self._counts(handler).items() if count]
            if not is_kafka_handler_healthy(self._broker.context):
                left += get_kafka_handler_report(self._broker.context).problems
        return left

    def check_health(self) -> None:
        """Check that stalled partitions are named as long as they are stalled, and the reported ages of records."""
        handler = self.handler
        if handler is None or self._broker is None or not self.is_running or self.oracle.is_rebalancing:
            return
        report = get_kafka_handler_report(self._broker.context)
        problems = report.problems
        for each in report.partitions:
            if each.oldest_unfinished_offset is not None and each.oldest_unfinished_age_sec is not None:
                self.oracle.reports_age(each.partition, each.oldest_unfinished_offset, each.oldest_unfinished_age_sec)
        for topic, partition, ledger in handler.committer.partitions():
            if ledger.stopped_at is not None and not any(f"{topic}[{partition}]" in each for each in problems):
                self.oracle.violated("a stalled partition is named", partition, "at", ledger.stopped_at, problems)

    # -- the user --------------------------------------------------------------------------------------------------

    def pause(self, place: int) -> Callable[[], None] | None:
        """Pause one of the partitions; return a function that resumes it."""
        consumer, tp = self._one_of_mine(place)
        if tp is None or tp in consumer.paused():
            return None
        self.oracle.pauses(tp.partition)
        consumer.pause(tp)

        def resume() -> None:
            if self.is_running and tp in consumer.assignment():
                self.oracle.resumes(tp.partition)
                consumer.resume(tp)

        return resume

    def seek_back(self, place: int) -> bool:
        """Seek back in one of the partitions, when all of its delivered records have finished."""
        consumer, tp = self._one_of_mine(place)
        if tp is None or not self.oracle.has_all_of(tp.partition):
            return False
        began, position = self._oracle.began[tp.partition], consumer.position_of(tp)
        # Not below the committed offset: after a seek, records below it are not known any more.
        end = 0 if position is None else min(position, self._oracle.committed[tp.partition] + 1)
        behind = [at for at in sorted(self._oracle.offsets[tp.partition]) if began <= at < end]
        if not behind:
            return False
        to = behind[place % len(behind)]
        self.oracle.seeks(tp.partition, to)
        consumer.seek(tp, to)
        return True

    def subscribe(self) -> None:
        """Subscribe to the same topic again, as users do to add another topic."""
        if self.consumer is not None and self.is_running:
            self.oracle.subscribes()
            self.consumer.subscribe([TOPIC])

    def _one_of_mine(self, place: int) -> tuple[Any, Any]:
        mine = sorted(self.consumer.assignment()) if self.consumer is not None and self.is_running else []
        return self.consumer, mine[place % len(mine)] if mine and not self.oracle.is_rebalancing else None

    def _counts(self, handler: KafkaConcurrentHandler) -> dict[str, int]:
        in_flight = sum(source.in_flight for source in handler.sources)
        return {
            "records": len(handler.records),
            "reserved": handler.slots.reserved,
            "in flight": in_flight,
            "running": len(self.oracle.running),
        }

    def check_nothing_left(self) -> None:
        """Check that a stopped process has kept no record, task or singleton."""
        handler = self.handler
        if self.singleton is not None:
            self.oracle.violated("the singleton is reset")
        if handler is not None and (len(handler.records) or handler.slots.reserved or handler.sources):
            self.oracle.violated("no record is left by a stop", list(handler.records), handler.slots.reserved)

    # -- records ---------------------------------------------------------------------------------------------------

    async def handle(self, number: int) -> None:
        """Handle a record as its script says."""
        if self._broker is None:
            raise RuntimeError
        context = self._broker.context
        a_pass = self.oracle.handles(number, context.get_local("kafka_attempt"))
        step = a_pass.script.step(a_pass.attempt)
        await self._take(a_pass, step.takes_sec, swallows=step.end == "swallow its cancellation")
        message = context.get_local("message")
        match step.end:
            case "raise":
                raise HandlingError
            case "refuse":
                raise PermissionError
            case "raise CancelledError":
                raise asyncio.CancelledError
            case "nack":
                await message.nack()
            case "raise NackMessage":
                raise NackMessage(delay=NACK_DELAY_SEC)
            case "ack and raise":
                await message.ack()
                raise HandlingError
            case "raise RejectMessage":
                raise RejectMessage
            case "panic":
                raise PanicError
            case "exit its generator":
                raise GeneratorExit
            case "stop the broker":
                await self._stop_from_within(self._broker)

    async def _stop_from_within(self, broker: KafkaBroker) -> None:
        """Stop the broker from one of its handlers; the process goes on with its stop afterwards."""
        if not self.is_running or self._oracle.stopped_from_within >= _MOST_STOPS_FROM_WITHIN:
            return
        self._oracle.stopped_from_within += 1
        self.is_running = False
        self.oracle.stopping()
        try:
            await broker.stop()
        finally:
            self._stop_wanted.set_result(False)

    async def _take(self, a_pass: Pass, takes_sec: float, *, swallows: bool) -> None:
        limit_sec, began = self._plan.settings.handler_timeout_sec, self.loop.time()
        until = began + takes_sec
        while (now := self.loop.time()) < until:
            try:
                await asyncio.sleep(until - now)
            except asyncio.CancelledError:
                now = self.loop.time()
                if limit_sec and not a_pass.was_timed_out and now - began >= limit_sec - _EXACT_SEC:
                    a_pass.was_timed_out = True
                else:
                    a_pass.was_cancelled = True
                self.oracle.note("is cancelled", a_pass.script.number, a_pass.was_timed_out, a_pass.was_cancelled)
                if not swallows or self.oracle.is_gone:
                    raise
                until, swallows = now + SWALLOWS_SEC, False

    def script_of(self, raw: Any) -> Script:
        """Return the script of a record."""
        return self._oracle.scripts[number_of(raw.value)]


class _Watching(BaseMiddleware):
    """The outermost middleware, which notes the beginning and the end of each pass."""

    member: ClassVar[Member]

    @override
    async def on_receive(self) -> None:
        self.member.oracle.begins(self.member.script_of(self.msg))

    @override
    async def after_processed(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> bool:
        self.member.oracle.ends(self.member.script_of(self.msg), exc_val)
        return False
