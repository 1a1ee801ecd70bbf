"""Runs records: one task per record, from its turn in its order until it is done or left undone (I18, I19)."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from faststream.exceptions import StopConsume

from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._record.failure import Failures
from faststream_concurrent_kafka._record.in_flight import InFlight
from faststream_concurrent_kafka._record.record import (
    NACKED,
    UP_TO_POLICY,
    Outcome,
    Record,
    current_record,
    is_interrupt,
    outcome_of,
)
from faststream_concurrent_kafka._record.slots import Slots
from faststream_concurrent_kafka._record.state import ENDED, QUEUED, READY, RUNNING
from faststream_concurrent_kafka._runtime.background import Background
from faststream_concurrent_kafka._runtime.turns import Turns, paced
from faststream_concurrent_kafka.errors import brief
from faststream_concurrent_kafka.settings import Settings


logger = logging.getLogger("faststream_concurrent_kafka")

# A handler that goes on after a cancellation is cancelled again for this long, and then given up.
CANCELLATION_GRACE_SEC = 1.0
# An attribute of an Enum class is looked up slowly before Python 3.12, and these are used for every record.
_DONE, _NOT_DONE = Outcome.DONE, Outcome.NOT_DONE


class Runner:
    """Makes the attempts at each record, and carries out its failure policy."""

    def __init__(self, settings: Settings, slots: Slots, complete: Callable[[Admission], None]) -> None:
        """Let `complete` be called for each admission of a record that is done."""
        self.records: InFlight = InFlight()
        self._complete = complete
        self._ended: deque[Record] = deque()
        self._is_handing_on = False
        self.turns: Turns = Turns()
        self._slots = slots
        self._failures = Failures(settings)
        self._background: Background

    def start(self, background: Background, loop: asyncio.AbstractEventLoop) -> None:
        """Run records in this loop."""
        self._background = background
        self.turns.start(loop)

    def submit(self, record: Record) -> asyncio.Task[None] | None:
        """Create the task that owns the record to its end; None if the record waits for its order. Never raises."""
        if self.records.enter(record):
            self._start(record)
        return record.task

    def _start(self, record: Record) -> None:
        record.share = self._slots.unshared if record.source is None else record.source.share
        record.get_ready()
        # One name for all tasks: to format a number for each takes time.
        record.task = self._background.create_task(self._own(record), name="kafka-record", context=record.context)

    async def _own(self, record: Record) -> None:
        if record.task is None:
            # An eager task factory starts this before `create_task` returns, so before `_start` sets it.
            record.task = asyncio.current_task()
        current_record.set(record)
        share = record.share
        outcome, error = _NOT_DONE, None
        try:
            while True:
                if record.slot is not True and record.slot is not None:
                    await record.slot
                try:
                    if record.attempt == 0 and record.is_passed_over:
                        break
                    record.begin()
                    await paced(self.turns, record.process(record.raw), record)
                except BaseException as raised:  # noqa: BLE001 - FastStream has logged it; here its meaning is decided
                    error = raised
                finally:
                    share.give_back(record)
                message = record.message
                if error is None and record.state is RUNNING and (message is None or message.committed is not NACKED):
                    # A shortcut for most passes; `outcome_of` returns the same.
                    outcome = _DONE
                    break
                outcome = self._meaning_of(record, error)
                if outcome in UP_TO_POLICY:
                    record.fail()
                    outcome = await self._deal_with(record, outcome, error)
                if outcome is not Outcome.AGAIN or record.state is not READY:
                    break
                outcome, error = _NOT_DONE, None
        except asyncio.CancelledError:
            # Cancelled while it waited for its slot, its next attempt or its dead letter.
            outcome = _NOT_DONE
        finally:
            # A finished task keeps its context, and an exception keeps the frames of its traceback: without this,
            # record, task and context would be a reference cycle, which only the garbage collector frees.
            error = None
            current_record.set(None)
            self.leave(record, outcome)

    def leave(self, record: Record, outcome: Outcome) -> None:
        """Settle a record whose task has ended, and start the records that waited for it in their order."""
        if record.slot is not None:
            # Its task was cancelled before its first step, or while it waited for the slot.
            record.share.give_back(record)
        self._settle(record, outcome)
        if record.order_keys:
            self._ended.append(record)
            self._hand_on()

    def _hand_on(self) -> None:
        if self._is_handing_on:
            # Called by a successor that started eagerly and has ended already: recursion would be as deep as the queue
            # is long.
            return
        self._is_handing_on = True
        try:
            while self._ended:
                for successor in self.records.successors(self._ended.popleft()):
                    if successor.state is QUEUED and not successor.is_passed_over:
                        self._start(successor)
                    else:
                        self._settle(successor, _NOT_DONE)
                        self._ended.append(successor)
        finally:
            self._is_handing_on = False

    def _settle(self, record: Record, outcome: Outcome) -> None:
        is_cancelled_by_others = outcome is not _DONE and record.is_cancelled_by_others
        if not self.records.settle(record):
            return
        if outcome is _DONE:
            for admission in record.admissions:
                self._complete(admission)
            return
        for admission in record.admissions:
            # The records behind it will be delivered again with it.
            admission.ledger.stop_at(admission.offset)
        if record.source is not None and is_cancelled_by_others:
            record.source.halt(record, "its task was cancelled by other code")

    async def cancel(self, belongs: Callable[[Record], bool]) -> list[Record]:
        """Cancel the records that `belongs` accepts, wait up to `CANCELLATION_GRACE_SEC` for them, and return them."""
        loop = asyncio.get_running_loop()
        cancelled = self.records.matching(belongs)
        running: list[asyncio.Task[None]] = []
        for record in cancelled:
            if record.task is None:
                # Before its predecessor ends, or that would start it.
                self._settle(record, _NOT_DONE)
            else:
                record.cancel()
                running.append(record.task)
        deadline = loop.time() + CANCELLATION_GRACE_SEC
        while running and loop.time() < deadline:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=CANCELLATION_GRACE_SEC / 5)
            running = [task for task in running if not task.done()]
        for record in cancelled:
            if record.task is None or record.state is ENDED:
                continue
            if record.task.done():
                # A task that was cancelled before its first step never ran its own `finally`.
                self.leave(record, _NOT_DONE)
            else:
                logger.error("Was cancelled and goes on: %r. A handler must not swallow CancelledError.", record)
                self._settle(record, _NOT_DONE)
        return cancelled

    def _meaning_of(self, record: Record, error: BaseException | None) -> Outcome:
        if error is not None and is_interrupt(error):
            # It is meant for the process, not for the record: it ends the run of the event loop.
            raise error
        if isinstance(error, StopConsume | SystemExit):
            self._stop_source(record, error)
        return outcome_of(record, error)

    async def _deal_with(self, record: Record, outcome: Outcome, error: BaseException | None) -> Outcome:
        stop = None if record.source is None else record.source.stopping
        if stop is not None and stop.has_let_go(record):
            logger.error(
                "%r was not done after its handler had awaited the stop of its own subscriber, and will be delivered "
                "again: %s. Let app.exit(), StopConsume or a task of its own stop what a record needs to the end.",
                *(record, "not acknowledged" if error is None else brief(error)),
            )
            return _NOT_DONE
        try:
            return await self._failures.deal_with(record, outcome, error)
        except BaseException as problem:
            is_cancellation = isinstance(problem, asyncio.CancelledError)
            if is_interrupt(problem) or (is_cancellation and record.task is not None and record.task.cancelling()):
                raise
            logger.exception("The failure policy of %r has failed", record)
            if record.source is not None:
                record.source.halt(record, f"its failure policy has failed: {brief(problem)}")
            return _NOT_DONE

    def _stop_source(self, record: Record, error: BaseException) -> None:
        """Stop subscriber or application, as FastStream's `consume` does; not awaited: it waits for this record."""
        if record.source is None:
            return
        self._background.start_helper(record.source.stop())
        if isinstance(error, SystemExit):
            # Not called here: an error of the application's `exit` must not become an error of this record.
            self._background.call_soon(record.source.stop_application)
