"""`KafkaBatchCommitter`: the one background task that commits, and the only caller of `consumer.commit`."""

import asyncio
import contextlib
import logging
from typing import Any

from faststream_concurrent_kafka._commit.consumer import CommitFailure, ConsumerOffsets, classify
from faststream_concurrent_kafka._commit.request import commit, commit_last, describe
from faststream_concurrent_kafka._commit.task import Consumer, KafkaCommitTask
from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._partition.redelivery import Adoptable, Earlier
from faststream_concurrent_kafka._runtime.background import Background
from faststream_concurrent_kafka.errors import CommitterIsDeadError


logger = logging.getLogger("faststream_concurrent_kafka")

# aiokafka retries a commit for ever inside; this bounds one attempt.
COMMIT_REQUEST_TIMEOUT_SEC = 5.0
# A full window whose frontier moves in small steps is not worth a request for each.
_ROOM_PAUSE_SEC = 0.02


class KafkaBatchCommitter:
    """Commits, per consumer and partition, the offset up to which everything is finished.

    A commit is sent when `commit_batch_size` records have finished since the last one, when
    `commit_batch_timeout_sec` seconds have passed since the first of them finished, or on a flush: one request in
    flight per consumer, each bounded in time. A failed commit is tried again, with the offsets of that moment.
    """

    def __init__(
        self,
        *,
        commit_batch_size: int = 1000,
        commit_batch_timeout_sec: float = 1.0,
        commit_failure_timeout_sec: float = 15.0,
        commit_renewal_sec: float = 0.0,
        commit_metadata: bool = False,
    ) -> None:
        self._commit_batch_size = commit_batch_size
        self._commit_batch_timeout_sec = commit_batch_timeout_sec
        self._commit_failure_timeout_sec = commit_failure_timeout_sec
        self._commit_renewal_sec = commit_renewal_sec
        self._renewed_at = 0.0
        self._commit_metadata = commit_metadata
        self._consumers: dict[Consumer, ConsumerOffsets] = {}
        self._finished = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wakeup = asyncio.Event()
        self._fatal: BaseException | None = None
        self._main: asyncio.Task[None] | None = None
        self.is_alive = False
        """Whether the main task runs."""
        self._loop: asyncio.AbstractEventLoop
        self._background: Background

    # -- life ----------------------------------------------------------------------------------------------------

    def spawn(self) -> None:
        """Start the main task in the running event loop; a second call does nothing."""
        if self._main is None:
            self._loop = asyncio.get_running_loop()
            self._renewed_at = self._loop.time()
            self._background = Background(self._loop)
            self._main = self._background.create_task(self._run(), name="kafka-batch-committer")
            self.is_alive = True
            self._main.add_done_callback(self._ended)

    def _ended(self, _main: asyncio.Task[None]) -> None:
        self.is_alive = False

    async def close(self) -> None:
        """Commit what is finished (bounded by the request's time limit) and end the main task. Never raises."""
        if self._main is None:
            return
        if self.is_alive:
            await self.commit_all()
        self._main.cancel()
        await asyncio.wait({self._main})
        self.is_alive = False
        if self._timer is not None:
            self._timer.cancel()
        for consumer in list(self._consumers):
            self.forget(consumer)
        self._main = None

    @property
    def is_healthy(self) -> bool:
        """Whether the main task runs and no commit has been failing for `commit_failure_timeout_sec`."""
        return not self.problems()

    def problems(self) -> list[str]:
        """Say why the committer is not healthy; empty when it is."""
        if self._main is None:
            return ["the committer is not running"]
        if deaths := self.deaths():
            return deaths
        now, limit_sec = self._loop.time(), self._commit_failure_timeout_sec
        problems = [
            f"no commit has succeeded for {age_sec:.0f} s: {offsets.clock.error or 'no answer'}"
            for offsets in self._consumers.values()
            if (age_sec := offsets.failing_sec(now)) >= limit_sec
        ]
        problems += [
            f"commits of {key.topic}[{key.partition}] have been refused for {age_sec:.0f} s: {error}"
            for offsets in self._consumers.values()
            for key, age_sec, error in offsets.refused_for(limit_sec, now)
        ]
        return problems

    def deaths(self) -> list[str]:
        """Name what only a restart of the process brings back: the main task, once it has ended."""
        return [] if self._main is None or self.is_alive else [f"the committer has died: {self._fatal!r}"]

    def partitions(self) -> list[tuple[str, int, PartitionLedger[KafkaCommitTask]]]:
        """Return topic, partition and ledger of everything that is consumed now."""
        return [(*key, ledger) for offsets in self._consumers.values() for key, ledger in offsets.ledgers.items()]

    # -- records -------------------------------------------------------------------------------------------------

    def send_task(self, task: KafkaCommitTask) -> Earlier[KafkaCommitTask] | None:
        """Admit a record, in delivery order: from now on the commit of its partition waits for it.

        Returns what is known of it if it was delivered before a rebalance, and had begun or finished by then.

        Raises:
            CommitterIsDeadError: the main task has died or was never spawned.

        """
        if not self.is_alive:
            raise CommitterIsDeadError("the committer's main task is not running") from self._fatal
        offsets = self._consumers.get(task.consumer) or self.watch(task.consumer)
        task.admitted_at = self._loop.time()
        if task.future is not None:
            task.future.add_done_callback(lambda future: None if future.cancelled() else self.complete(task))
        return offsets.admit(task)

    def complete(self, task: KafkaCommitTask) -> None:
        """Note that a record needs no more work."""
        task.is_finished = True
        task.ledger.complete(task.offset)
        self._finished += 1
        if self._finished >= self._commit_batch_size:
            self._wake()
        elif self._timer is None:
            self._timer = self._background.call_later(self._commit_batch_timeout_sec, self._wake)
        if task.ledger.room_wanted:
            self.make_room(task)

    def make_room(self, task: KafkaCommitTask) -> None:
        """Commit soon, whatever batch and timer say, if that makes room in the full window of a record's partition."""
        if not task.ledger.closed and (offsets := self._consumers.get(task.consumer)) is not None:
            self._make_room(offsets, task.ledger)

    def _make_room(self, offsets: ConsumerOffsets, ledger: PartitionLedger[KafkaCommitTask]) -> None:
        room = ledger.frontier - ledger.acked
        if room >= ledger.room_wanted:
            self._request(offsets)
        elif room and offsets.soon is None:
            offsets.soon = self._background.call_later(_ROOM_PAUSE_SEC, self._try_soon, offsets)

    # -- consumers -----------------------------------------------------------------------------------------------

    def watch(self, consumer: Consumer) -> ConsumerOffsets:
        """Return the ledgers of a consumer, new ones for a new consumer."""
        offsets = self._consumers.get(consumer)
        if offsets is None:
            offsets = ConsumerOffsets(consumer, writes_metadata=self._commit_metadata)
            self._consumers[consumer] = offsets
        return offsets

    def forget(self, consumer: Consumer) -> dict[tuple[str, int], Adoptable[KafkaCommitTask]]:
        """Commit nothing for this consumer any more; return what may be delivered again of what it has had."""
        offsets = self._consumers.pop(consumer, None)
        if offsets is None:
            return {}
        offsets.end_epoch()
        offsets.cancel_retry()
        if offsets.request is not None:
            offsets.request.cancel()
        return offsets.left

    async def hold(self, consumer: Consumer) -> None:
        """Start no commit for this consumer until `release`; the one in flight is cancelled and awaited.

        A flush in flight (of a stop, while a rebalance begins, or the other way round) is awaited first.

        A commit that aiokafka retries across a rebalance is sent under the new generation, and moved the next
        owner's offset back: none may be under way then.
        """
        offsets = self.watch(consumer)
        offsets.held = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COMMIT_REQUEST_TIMEOUT_SEC), offsets.flushing:
                pass
        await self._cancel_request(offsets)

    def release(self, consumer: Consumer) -> None:
        """Let commits for this consumer start again: its partitions are assigned."""
        self.watch(consumer).assigned()
        # Records may have been delivered and finished while commits were held.
        self.request(consumer)

    def renew(self) -> None:
        """Commit once more what is committed already, if it is time: a broker forgets the offsets of idle groups."""
        if not self.is_alive or not 0 < self._commit_renewal_sec <= self._loop.time() - self._renewed_at:
            return
        self._renewed_at = self._loop.time()
        for offsets in self._consumers.values():
            offsets.renew()
            self._request(offsets)

    def request(self, consumer: Consumer) -> None:
        """Commit now what is to be committed for this consumer, unless commits are held."""
        if self.is_alive:
            self._request(self.watch(consumer))

    def end_epoch(self, consumer: Consumer) -> None:
        """End the ledgers of a consumer: what still runs of its records commits nothing, unless it comes back."""
        self.watch(consumer).end_epoch()

    async def flush(self, consumer: Consumer, *, timeout_sec: float) -> bool:
        """Commit what is finished, now, in place of the request in flight; another flush is awaited first.

        Returns whether nothing finished is left uncommitted. A held consumer stays held. On cancellation the commit
        may or may not have reached the broker.
        """
        offsets = self.watch(consumer)
        deadline = self._loop.time() + timeout_sec
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await offsets.flushing.acquire()
            try:
                await self._cancel_request(offsets)
                if self.is_alive and offsets.dirty():
                    await self._send_last(offsets, deadline - self._loop.time())
            finally:
                offsets.flushing.release()
        return not offsets.dirty()

    async def _send_last(self, offsets: ConsumerOffsets, timeout_sec: float) -> None:
        request = self._start_request(offsets, timeout_sec, is_last=True)
        try:
            await asyncio.wait({request})
        except asyncio.CancelledError:
            request.cancel()
            raise

    async def commit_all(self) -> None:
        """Commit what is finished, for every consumer, within the time limit of one request.

        Raises:
            CommitterIsDeadError: the main task has died or was never spawned.

        """
        if not self.is_alive:
            raise CommitterIsDeadError("the committer's main task is not running") from self._fatal
        flushes = (self.flush(consumer, timeout_sec=COMMIT_REQUEST_TIMEOUT_SEC) for consumer in list(self._consumers))
        await asyncio.gather(*flushes)

    # -- the main task -------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._finished = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wakeup.set()

    async def _run(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            if self._fatal is not None:
                logger.critical("The committer has died: nothing is committed any more", exc_info=self._fatal)
                return
            self._request_all()

    def _request_all(self) -> None:
        # Not in `_run`: its frame would keep the last of them until the next commit, and with it a whole subscriber.
        for offsets in list(self._consumers.values()):
            self._request(offsets)

    def _request(self, offsets: ConsumerOffsets) -> None:
        if offsets.held or offsets.retry is not None:
            return
        if offsets.request is not None:
            offsets.again = True
        elif offsets.is_due(self._loop.time()):
            self._start_request(offsets, COMMIT_REQUEST_TIMEOUT_SEC)

    def _start_request(
        self, offsets: ConsumerOffsets, timeout_sec: float, *, is_last: bool = False
    ) -> asyncio.Task[Any]:
        request = self._background.create_task(
            self._make_request(offsets, timeout_sec, is_last=is_last), name="kafka-commit"
        )
        if not request.done():
            # Else a task factory has started it eagerly, and it is over.
            offsets.request = request
        return request

    @staticmethod
    async def _cancel_request(offsets: ConsumerOffsets) -> None:
        offsets.cancel_retry()
        while offsets.request is not None:
            request = offsets.request
            request.cancel()
            await asyncio.wait({request})
            offsets.cancel_retry()
            if offsets.request is request:
                # Cancelled before its first step.
                offsets.request = None

    async def _make_request(self, offsets: ConsumerOffsets, timeout_sec: float, *, is_last: bool) -> None:
        failure: CommitFailure | None = CommitFailure.RETRIABLE
        try:
            error = await (commit_last if is_last else commit)(offsets, timeout_sec=timeout_sec)
            failure = None if error is None else self._failed(offsets, error)
        finally:
            offsets.request = None
            again, offsets.again = offsets.again, False
            if failure is CommitFailure.LOST_OWNERSHIP and offsets.rejoins:
                # A rejoin follows, and the listener releases the commits when it is over. Another attempt before
                # that would only force one more rejoin.
                offsets.held = True
            elif failure is not None:
                if not offsets.held and offsets.retry is None:
                    offsets.retry = self._loop.call_later(offsets.next_backoff_sec(), self._try_again, offsets)
            else:
                if again:
                    self._request(offsets)
                for ledger in offsets.ledgers.values():
                    if ledger.room_wanted:
                        self._make_room(offsets, ledger)
                if self._timer is None and offsets.told and offsets.healthy():
                    # A map was told that had been made before, and nothing else may finish.
                    self._timer = self._background.call_later(self._commit_batch_timeout_sec, self._wake)
                if offsets.retry_refused is not None:
                    # Of an earlier answer: it would come too early, find nothing due, and be the last.
                    offsets.retry_refused.cancel()
                    offsets.retry_refused = None
                refused_until = offsets.refusals.next_at(offsets.dirty()) if offsets.refusals else None
                if refused_until is not None:
                    offsets.retry_refused = self._loop.call_at(refused_until, self._try_refused_again, offsets)

    def _try_soon(self, offsets: ConsumerOffsets) -> None:
        offsets.soon = None
        self._request(offsets)

    def _try_again(self, offsets: ConsumerOffsets) -> None:
        offsets.retry = None
        self._request(offsets)

    def _try_refused_again(self, offsets: ConsumerOffsets) -> None:
        offsets.retry_refused = None
        self._request(offsets)

    def _failed(self, offsets: ConsumerOffsets, error: BaseException) -> CommitFailure:
        failure = classify(error)
        if failure is CommitFailure.FATAL:
            self._fatal = error
            self._wakeup.set()
        elif offsets.clock.failures == 1:
            # Once for a row of failures, not at every attempt.
            logger.warning("Commit failed, %s is kept and tried again: %r", describe(offsets.dirty()), error)
        return failure
