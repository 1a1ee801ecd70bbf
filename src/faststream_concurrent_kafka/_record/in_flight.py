"""The records in flight: each is started when its order allows, and settled once; `drain` waits for them."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator

from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._record.ordering import OrderQueues
from faststream_concurrent_kafka._record.record import Outcome, Record
from faststream_concurrent_kafka._record.state import BACKOFF, ENDED, QUEUED


logger = logging.getLogger("faststream_concurrent_kafka")

# A handler that goes on after a cancellation is cancelled again for this long, and then given up.
CANCELLATION_GRACE_SEC = 1.0
_LONGEST_WAIT_SEC = 0.2
# An attribute of an Enum class is looked up slowly before Python 3.12, and this one is used for every record.
_DONE = Outcome.DONE


class InFlight:
    """Every record from its admission until it is settled: done, or left undone.

    `start` creates the task of a record; `complete` marks an admission as finished.
    """

    def __init__(self, start: Callable[[Record], None], complete: Callable[[Admission], None]) -> None:
        self._start = start
        self._complete = complete
        # In delivery order: they are cancelled in this order, too.
        self._records: dict[Record, None] = {}
        self._queues: OrderQueues[Record] = OrderQueues()
        self._drains: list[asyncio.Event] = []
        self._left: deque[Record] = deque()
        self._is_handing_on = False

    def __len__(self) -> int:
        """Return the number of records in flight."""
        return len(self._records)

    def __contains__(self, record: Record) -> bool:
        """Whether a record is in flight."""
        return record in self._records

    def __iter__(self) -> Iterator[Record]:
        """Iterate over the records in flight."""
        return iter(self._records)

    @property
    def waiting(self) -> int:
        """How many records wait: for their order, a slot, a thread, a turn of the loop, or another attempt."""
        return sum(record.is_idle or record.waits > 0 for record in self._records)

    @property
    def retrying(self) -> int:
        """How many records wait for another attempt."""
        return sum(record.state is BACKOFF for record in self._records)

    def matching(self, belongs: Callable[[Record], bool]) -> list[Record]:
        """Return the records that `belongs` accepts."""
        return [record for record in self._records if belongs(record)]

    def enter(self, record: Record) -> None:
        """Add a record; it is started at once, or when the records before it in its order have ended."""
        self._records[record] = None
        if record.source is not None:
            record.source.in_flight += 1
        if not record.order_keys or self._queues.enter(record, record.order_keys):
            self._start(record)

    def leave(self, record: Record, outcome: Outcome) -> None:
        """Settle a record whose task has ended, and start the records that waited for it in their order."""
        if record.slot is not None:
            # Its task was cancelled before its first step, or while it waited for the slot.
            record.share.give_back(record)
        self._settle(record, outcome)
        if record.order_keys:
            self._left.append(record)
            self._hand_on()

    def _hand_on(self) -> None:
        if self._is_handing_on:
            # Called by a successor that started eagerly and has ended already: recursion would be as deep as the queue
            # is long.
            return
        self._is_handing_on = True
        try:
            while self._left:
                left = self._left.popleft()
                keys, left.order_keys = left.order_keys, ()
                for successor in self._queues.leave(keys):
                    if successor.state is QUEUED and not successor.is_passed_over:
                        self._start(successor)
                    else:
                        self._settle(successor, Outcome.NOT_DONE)
                        self._left.append(successor)
        finally:
            self._is_handing_on = False

    def _settle(self, record: Record, outcome: Outcome) -> None:
        """Mark a record as done or left undone. Records behind it in its order go on to wait for its task."""
        state = record.state
        if state is ENDED:
            return
        is_cancelled_by_others = outcome is not _DONE and record.is_cancelled_by_others
        record.state = ENDED
        del self._records[record]
        source = record.source
        if source is not None:
            source.in_flight -= 1
        if self._drains and not (source is not None and source.in_flight):
            for changed in self._drains:
                changed.set()
        if outcome is _DONE:
            for admission in record.admissions:
                self._complete(admission)
            return
        for admission in record.admissions:
            # The records behind it will be delivered again with it.
            admission.ledger.stop_at(admission.offset)
        if source is not None and is_cancelled_by_others:
            source.halt(record, "its task was cancelled by other code")

    async def drain(
        self,
        belongs: Callable[[Record], bool],
        *,
        timeout_sec: float,
        spared: Callable[[], Collection[Record]] = tuple,
    ) -> bool:
        """Wait until no record that `belongs` is in flight, at most `timeout_sec`; return whether that was reached.

        It does not wait for the records that `spared` returns.

        A failed record is tried again if the attempt begins before the deadline, a nacked one at most once; the next
        owner of the partition gets the records that are not done.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_sec
        changed = asyncio.Event()
        self._drains.append(changed)
        try:
            while records := self.matching(belongs):
                for record in records:
                    # Fenced records are not retried here: the next owner of their partition does that.
                    record.end_by(deadline)
                    if record.state is BACKOFF and record.wakes_at >= deadline and record.task is not None:
                        record.task.cancel()
                exempt = spared()
                if all(record in exempt for record in records):
                    break
                if loop.time() >= deadline:
                    return False
                changed.clear()
                with contextlib.suppress(TimeoutError):
                    # Look again from time to time: more records may be delivered meanwhile.
                    async with asyncio.timeout_at(min(deadline, loop.time() + _LONGEST_WAIT_SEC)):
                        await changed.wait()
        finally:
            self._drains.remove(changed)
        return True

    async def cancel(self, belongs: Callable[[Record], bool]) -> list[Record]:
        """Cancel the records that `belongs` accepts, wait up to `CANCELLATION_GRACE_SEC` for them, and return them."""
        loop = asyncio.get_running_loop()
        cancelled = self.matching(belongs)
        running: list[asyncio.Task[None]] = []
        for record in cancelled:
            if record.task is None:
                # Before its predecessor ends, or that would start it.
                self._settle(record, Outcome.NOT_DONE)
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
                self.leave(record, Outcome.NOT_DONE)
            else:
                logger.error("Was cancelled and goes on: %r. A handler must not swallow CancelledError.", record)
                self._settle(record, Outcome.NOT_DONE)
        return cancelled
