"""One stop that all callers share; a call that a record awaits returns before the stop waits for that record.

Invariants: I28, I29.
"""

import asyncio
import weakref
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any

from faststream_concurrent_kafka._record.record import Record, current_record
from faststream_concurrent_kafka._runtime.background import Background
from faststream_concurrent_kafka._upstream import tasks


class SharedStop:
    """A stop in a task of its own: it goes on when a caller is cancelled.

    A handler may await a stop of its own subscriber, which waits for that handler. The library finds such a call
    by following which task awaits which. A context variable would not do: tasks that the handler starts and does not
    await inherit it, and their calls have to wait like any other.
    """

    def __init__(
        self, work: Callable[["SharedStop"], Coroutine[Any, Any, None]], name: str, background: Background
    ) -> None:
        """Start the stop, in the library's context: the caller may be a record."""
        # The callers, each with a future that lets its call return early; None = it waits to the end.
        self._callers: dict[asyncio.Task[Any], asyncio.Future[None] | None] = {}
        # For a call that comes from a thread: the record whose handler runs in that thread, and waits there.
        self._called_by: weakref.WeakKeyDictionary[asyncio.Task[Any], Record] = weakref.WeakKeyDictionary()
        self._let_go: weakref.WeakSet[Record] = weakref.WeakSet()
        self.task = background.create_task(work(self), name=name)

    async def join(self, *, to_the_end: bool = False) -> bool:
        """Wait for the end of the stop, and raise its exception; return False if the call was let go before the end."""
        caller: Any = asyncio.current_task()
        let_go = None if to_the_end else asyncio.get_running_loop().create_future()
        self._callers[caller] = let_go
        if (record := current_record.get()) is not None:
            self._called_by[caller] = record
        try:
            await asyncio.wait({self.task} if let_go is None else {self.task, let_go}, return_when="FIRST_COMPLETED")
        finally:
            self._callers.pop(caller, None)
        if not self.task.done():
            return False
        self.task.result()
        return True

    @property
    def callers(self) -> Iterable[asyncio.Task[Any]]:
        """The tasks that await the stop."""
        return self._callers

    def held_up_by(self, records: Collection[Record]) -> set[Record]:
        """Return the records in flight that can't end before this stop lets their calls return."""
        return self._waiting(self._callers, records) if self._callers else set()

    def let_go(self, records: Collection[Record]) -> bool:
        """Let the calls return that records await; return whether there were any."""
        inside = {
            caller: self._waiting([caller], records) for caller, let_go in self._callers.items() if let_go is not None
        }
        for caller, waiting in inside.items():
            let_go = self._callers[caller]
            if waiting and let_go is not None:
                del self._callers[caller]
                if not let_go.done():
                    let_go.set_result(None)
                self._let_go.update(waiting)
        return any(inside.values())

    def has_let_go(self, record: Record) -> bool:
        """Whether the stop has let a call of this record return: what the record uses next may be closed by now."""
        return record in self._let_go

    def _waiting(self, callers: Iterable[asyncio.Task[Any]], records: Collection[Record]) -> set[Record]:
        """Return the records whose passes await one of these calls, directly or not."""
        found = _awaiting(callers, records)
        for caller in callers:
            record = self._called_by.get(caller)
            pass_task = None if record is None or record not in records else record.pass_task
            if record is not None and pass_task is not None and tasks.is_in_thread(pass_task):
                found.add(record)
        return found


def _awaiting(callers: Iterable[asyncio.Task[Any]], records: Iterable[Record]) -> set[Record]:
    """Return the records whose passes await one of these tasks, directly or not."""
    running_in = {record.pass_task: record for record in records if record.pass_task is not None}
    found: set[Record] = set()
    seen: set[asyncio.Future[Any]] = set()
    awaited: list[asyncio.Future[Any]] = list(callers)
    while awaited:
        future = awaited.pop()
        if future in seen:
            continue
        seen.add(future)
        awaited += tasks.awaiting(future)
        record = running_in.get(future) if isinstance(future, asyncio.Task) else None
        if record is not None:
            found.add(record)
            if record.source is not None and (stop := record.source.stopping) is not None:
                # That stop waits for the record, so its callers wait for it as well.
                awaited += stop.callers
    return found
