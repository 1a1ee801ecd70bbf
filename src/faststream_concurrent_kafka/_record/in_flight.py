"""The records in flight: which of them may start, and which are settled; `drain` waits for them."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator

from faststream_concurrent_kafka._record.ordering import OrderQueues
from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka._record.state import BACKOFF, ENDED


_LONGEST_WAIT_SEC = 0.2


class InFlight:
    """Every record from its admission until it is settled: done, or left undone."""

    def __init__(self) -> None:
        # In delivery order: they are cancelled in this order, too.
        self._records: dict[Record, None] = {}
        self._queues: OrderQueues[Record] = OrderQueues()
        self._drains: list[asyncio.Event] = []

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

    def enter(self, record: Record) -> bool:
        """Add a record; return whether it may start, or waits until the records before it in its order have ended."""
        self._records[record] = None
        if record.source is not None:
            record.source.in_flight += 1
        return not record.order_keys or self._queues.enter(record, record.order_keys)

    def settle(self, record: Record) -> bool:
        """Take a record out, done or undone; False if it is out already. Records behind it wait for its task."""
        if record.state is ENDED:
            return False
        record.state = ENDED
        del self._records[record]
        source = record.source
        if source is not None:
            source.in_flight -= 1
        if self._drains and not (source is not None and source.in_flight):
            for changed in self._drains:
                changed.set()
        return True

    def successors(self, record: Record) -> list[Record]:
        """Take a settled record out of its order; return the records behind it that may start now."""
        keys, record.order_keys = record.order_keys, ()
        return self._queues.leave(keys)

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
