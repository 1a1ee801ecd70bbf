"""When commits of one consumer are sent: by one background task, with one request in flight (I10, I11, I12)."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._commit.consumer import ConsumerOffsets
from faststream_concurrent_kafka._commit.failure import CommitFailure, classify
from faststream_concurrent_kafka._commit.request import commit, commit_last, describe
from faststream_concurrent_kafka._partition.ledger import PartitionLedger


logger = logging.getLogger("faststream_concurrent_kafka")

# Bounds one attempt: `consumer.commit` retries for ever.
COMMIT_REQUEST_TIMEOUT_SEC = 5.0
FIRST_BACKOFF_SEC = 0.1
LONGEST_BACKOFF_SEC = 5.0
# While the frontier of a full window moves in small steps, one request takes several of them.
_ROOM_PAUSE_SEC = 0.02
_NEVER = float("inf")


class CommitLoop:
    """Sends a commit when one is due, or at once in a flush; backs off after a failure.

    Requests for a commit are kept as one point in time, the earliest at which one is due.
    """

    def __init__(
        self,
        offsets: ConsumerOffsets,
        create_task: Callable[[Coroutine[Any, Any, None]], asyncio.Task[Any]],
        *,
        batch_timeout_sec: float,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.offsets = offsets
        self.finished: int = 0
        """How many records have finished since the last attempt to commit began."""
        self._create_task = create_task
        self._batch_timeout_sec = batch_timeout_sec
        self._on_fatal = on_fatal
        self._due_at = _NEVER
        self._not_before = -_NEVER
        self._backoff_sec = FIRST_BACKOFF_SEC
        self._changed = asyncio.Event()
        # The task that sends: the loop, or a flush in its place.
        self._sender: asyncio.Task[Any] | None = None
        # A stop and a rebalance may wait for the same last record, and then both flush: one after the other.
        self._flushing = asyncio.Lock()

    # -- when ----------------------------------------------------------------------------------------------------

    def request(self, after_sec: float = 0.0) -> None:
        """Make a commit due `after_sec` seconds from now, unless one is due earlier."""
        self._request_at(asyncio.get_running_loop().time() + after_sec)

    def _request_at(self, due_at: float) -> None:
        if due_at < self._due_at:
            self._due_at = due_at
            self._go_on()

    def make_room(self, ledger: PartitionLedger[Admission]) -> None:
        """Make a commit due, without waiting for batch or timer, if it frees places in a full window."""
        room = ledger.frontier - ledger.acked
        if room >= ledger.room_wanted:
            self.request()
        elif room > 0:
            self.request(_ROOM_PAUSE_SEC)

    def _go_on(self) -> None:
        if self._sender is not None and not self._sender.done():
            self._changed.set()
        elif self._due_at < _NEVER and not self.offsets.is_held and not self._flushing.locked():
            self._sender = self._create_task(self._run())

    async def _run(self) -> None:
        # An eager task factory starts this before `create_task` returns, so before `_sender` is set.
        await asyncio.sleep(0)
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        # `consumer.commit` may have swallowed a cancellation, so ask the task.
        while not (self.offsets.is_held or task is None or task.cancelling()):
            due_at = max(self._due_at, self._not_before)
            if due_at > loop.time():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due_at if due_at < _NEVER else None):
                        await self._changed.wait()
                    continue
            await self._attempt(COMMIT_REQUEST_TIMEOUT_SEC)

    # -- one attempt ---------------------------------------------------------------------------------------------

    async def _attempt(self, timeout_sec: float, *, is_last: bool = False) -> None:
        self._due_at, self.finished = _NEVER, 0
        try:
            error = await (commit_last if is_last else commit)(self.offsets, timeout_sec=timeout_sec)
        except asyncio.CancelledError:
            # It has neither succeeded nor failed, and everything is still to be committed.
            self.request()
            raise
        except Exception as fault:  # noqa: BLE001 - a fault of this library, and the log names it
            error = fault
        if error is None:
            self._succeeded()
        else:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        failure = classify(error)
        if failure is CommitFailure.FATAL:
            self._on_fatal(error)
            return
        if self.offsets.clock.failures == 1:
            # Logged once for a series of failures.
            logger.warning("Commit failed, %s is kept and tried again: %r", describe(self.offsets.dirty()), error)
        if failure is CommitFailure.LOST_OWNERSHIP and self.offsets.is_group_managed:
            # aiokafka joins again, and the listener then releases the commits. An attempt before that would only cause
            # another rejoin.
            self.offsets.is_held = True
            return
        self._not_before = asyncio.get_running_loop().time() + self._backoff_sec
        self._backoff_sec = min(self._backoff_sec * 2, LONGEST_BACKOFF_SEC)
        self.request()

    def _succeeded(self) -> None:
        self._begin_anew()
        # Only for dirty partitions that are not refused: for others a commit frees nothing, and would be due without
        # end.
        for key in self.offsets.dirty():
            partition = self.offsets.partitions[key]
            if partition.refusal is not None:
                self._request_at(partition.refusal.again_at)
                continue
            # This commit may have carried an older map, and no record that finishes may cause the next commit.
            self.request(self._batch_timeout_sec)
            if partition.ledger is not None and partition.ledger.room_wanted:
                self.make_room(partition.ledger)

    def _begin_anew(self) -> None:
        self._not_before, self._backoff_sec = -_NEVER, FIRST_BACKOFF_SEC

    # -- rebalances and stops ------------------------------------------------------------------------------------

    async def hold(self, timeout_sec: float) -> None:
        """Send no commit until `release`; the request in flight is cancelled and awaited.

        A flush in flight is awaited first, for up to `timeout_sec`: a stop's when a rebalance begins, or a rebalance's
        when a stop begins.
        """
        self.offsets.is_held = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_sec), self._flushing:
                pass
        await self._cancel()

    def release(self) -> None:
        """Send commits again: partitions are assigned. Records may have finished while commits were held."""
        self._begin_anew()
        self.offsets.assigned()
        self.request()
        self._go_on()

    async def flush(self, timeout_sec: float) -> None:
        """Commit now; cancels the request in flight, and waits for another flush first.

        If that is still under way at the end of `timeout_sec`, its request is cancelled: after a rebalance, aiokafka
        would go on with it under the new generation.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_sec
        try:
            async with asyncio.timeout_at(deadline):
                await self._flushing.acquire()
        except TimeoutError:
            await self._cancel()
            return
        try:
            await self._cancel()
            if self.offsets.dirty():
                await self._send_last(deadline - loop.time())
        finally:
            self._flushing.release()
            self._go_on()

    async def _send_last(self, timeout_sec: float) -> None:
        sender = self._sender = self._create_task(self._attempt(timeout_sec, is_last=True))
        try:
            await asyncio.wait({sender})
        except asyncio.CancelledError:
            sender.cancel()
            sender.add_done_callback(lambda _: self._go_on())
            raise

    async def _cancel(self) -> None:
        if (sender := self._sender) is not None and not sender.done():
            sender.cancel()
            await asyncio.wait({sender})

    def close(self) -> asyncio.Task[Any] | None:
        """Send no commit any more; return the cancelled task to be awaited, if any."""
        self.offsets.is_held = True
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.cancel()
        return sender

    # -- health --------------------------------------------------------------------------------------------------

    def problems(self, limit_sec: float, now: float) -> list[str]:
        """Name the commits that have been failing or refused for `limit_sec` or longer."""
        offsets = self.offsets
        problems: list[str] = []
        if (age_sec := offsets.failing_sec(now)) >= limit_sec:
            problems.append(f"no commit has succeeded for {age_sec:.0f} s: {offsets.clock.error or 'no answer'}")
        for key in offsets.refused():
            refusal = offsets.partitions[key].refusal
            if refusal is not None and (age_sec := now - refusal.since) >= limit_sec:
                problems.append(
                    f"commits of {key.topic}[{key.partition}] have been refused for {age_sec:.0f} s: {refusal.error}"
                )
        return problems
