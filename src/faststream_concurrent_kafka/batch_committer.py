"""`KafkaBatchCommitter` commits the offsets of finished records. Nothing else calls `consumer.commit`."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Coroutine
from typing import Any, NoReturn, Protocol

from faststream_concurrent_kafka._commit.admission import Admission, Consumer
from faststream_concurrent_kafka._commit.consumer import ConsumerOffsets
from faststream_concurrent_kafka._commit.loop import COMMIT_REQUEST_TIMEOUT_SEC, CommitLoop
from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._partition.redelivery import Earlier, Redeliverable
from faststream_concurrent_kafka._runtime.background import Background
from faststream_concurrent_kafka.errors import CommitterIsDeadError


logger: logging.Logger = logging.getLogger("faststream_concurrent_kafka")


# For tasks that were cancelled.
_END_SEC = 1.0


class TopicAndPartition(Protocol):
    """The `TopicPartition` of aiokafka or of FastStream."""

    @property
    def topic(self) -> str:
        """The name of the topic."""
        ...

    @property
    def partition(self) -> int:
        """The number of the partition."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KafkaCommitTask:
    """A record whose handling is a task (or future), for `KafkaBatchCommitter.send_task`.

    The record has finished when the task has a result or an exception. If the task is cancelled, the record stays
    unfinished, and no commit passes it.
    """

    asyncio_task: asyncio.Future[Any]
    topic_partition: TopicAndPartition
    offset: int
    consumer: Consumer


class KafkaBatchCommitter:
    """Commits, per consumer and partition, the offset below which every record has finished.

    A commit is sent for a consumer when `commit_batch_size` of its records have finished since the last one, when
    `commit_batch_timeout_sec` seconds have passed since the first of them finished, or on a flush: one request in
    flight per consumer, each bounded in time. A failed commit is tried again, with the offsets of that moment.

    It works without `KafkaConcurrentHandler`, for any `AIOKafkaConsumer`: `spawn`, `send_task` for each record in the
    order of its delivery, `close`. In `on_partitions_revoked` call `await hold(consumer)`,
    `await flush(consumer, timeout_sec=...)` and `end_epoch(consumer)`, in `on_partitions_assigned` call
    `release(consumer)`: a commit that crosses a rebalance can move the offset of the next owner back.
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
        self._loops: dict[Consumer, CommitLoop] = {}
        # The tasks of `send_task` that have not resolved.
        self._tasks: set[asyncio.Future[Any]] = set()
        self._fatal: BaseException | None = None
        self._has_failed = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self.is_alive: bool = False
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

    async def _run(self) -> None:
        await self._has_failed.wait()
        logger.critical("The committer has died: nothing is committed any more", exc_info=self._fatal)

    def _ended(self, _main: asyncio.Task[None]) -> None:
        self.is_alive = False

    def _die(self, error: BaseException) -> None:
        for loop in self._loops.values():
            loop.offsets.is_held = True
        if self._fatal is None:
            self._fatal = error
            self._has_failed.set()

    async def close(self, *, flush_timeout_sec: float = COMMIT_REQUEST_TIMEOUT_SEC) -> None:
        """Commit as `commit_all` does, then end the main task and everything else of the committer. Never raises.

        The log names the records that are still unfinished then: they will be delivered again.
        """
        if self._main is None:
            return
        if self.is_alive:
            with contextlib.suppress(CommitterIsDeadError):
                await self.commit_all(flush_timeout_sec=flush_timeout_sec)
        if left := [
            repr(first) for *_, ledger in self.partitions() if (first := ledger.first_unfinished()) is not None
        ]:
            logger.warning("The committer is closed, and not past these unfinished records: %s", ", ".join(left))
        ending = {self._main, *(task for each in self._loops.values() if (task := each.close()) is not None)}
        self._main.cancel()
        for consumer in list(self._loops):
            self.forget(consumer)
        await asyncio.wait(ending, timeout=_END_SEC)
        self.is_alive = False
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
        return [problem for loop in self._loops.values() for problem in loop.problems(limit_sec, now)]

    def deaths(self) -> list[str]:
        """Name the tasks that have ended and that only a restart of the process brings back: the main task."""
        return [] if self._main is None or self.is_alive else [f"the committer has died: {self._fatal!r}"]

    def partitions(self) -> list[tuple[str, int, PartitionLedger[Admission]]]:
        """Return topic, partition and ledger of each assigned partition."""
        return [
            (*key, partition.ledger)
            for loop in self._loops.values()
            for key, partition in loop.offsets.partitions.items()
            if partition.ledger is not None
        ]

    # -- records -------------------------------------------------------------------------------------------------

    async def send_task(self, task: KafkaCommitTask) -> None:
        """Admit a record, in delivery order: no commit passes it before its task has resolved.

        Raises:
            CommitterIsDeadError: the main task has died or was never spawned.

        """
        admission = Admission((task.topic_partition.topic, task.topic_partition.partition), task.offset)
        self.admit(task.consumer, admission)
        self._tasks.add(task.asyncio_task)
        task.asyncio_task.add_done_callback(functools.partial(self._resolved, admission))

    def _resolved(self, admission: Admission, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self.complete(admission)

    def admit(self, consumer: Consumer, admission: Admission) -> Earlier[Admission] | None:
        """Admit a record, in delivery order: from now on the commit of its partition waits for `complete`.

        Returns what is known of the record if it was delivered before a rebalance, and had begun or finished by then.

        Raises:
            CommitterIsDeadError: the main task has died or was never spawned.

        """
        if not self.is_alive:
            self._raise_dead()
        loop = admission.loop = self._loops.get(consumer) or self._loop_of(consumer)
        admission.admitted_at = self._loop.time()
        partitions = loop.offsets.partitions
        partition = partitions.get(admission.topic_partition) or loop.offsets.partition(admission.topic_partition)
        return partition.admit(admission)

    def complete(self, admission: Admission) -> None:
        """Mark an admitted record as finished."""
        admission.is_finished = True
        ledger, loop = admission.ledger, admission.loop
        ledger.complete(admission.offset)
        loop.finished += 1
        if loop.finished == self._commit_batch_size:
            loop.request()
        elif loop.finished == 1:
            loop.request(self._commit_batch_timeout_sec)
        if ledger.room_wanted and not ledger.closed:
            loop.make_room(ledger)

    def make_room(self, admission: Admission) -> None:
        """Make a commit due, without waiting for batch or timer, if that frees places in a partition's full window."""
        if not admission.is_fenced:
            admission.loop.make_room(admission.ledger)

    # -- consumers -----------------------------------------------------------------------------------------------

    def watch(self, consumer: Consumer) -> ConsumerOffsets:
        """Return the partitions of a consumer; those of a new consumer are empty."""
        return self._loop_of(consumer).offsets

    def _loop_of(self, consumer: Consumer) -> CommitLoop:
        loop = self._loops.get(consumer)
        if loop is None:
            offsets = ConsumerOffsets(consumer, writes_metadata=self._commit_metadata)
            loop = self._loops[consumer] = CommitLoop(
                offsets,
                self._create_task,
                batch_timeout_sec=self._commit_batch_timeout_sec,
                on_fatal=self._die,
            )
        return loop

    def _create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        return self._background.create_task(work, name="kafka-commit")

    def forget(self, consumer: Consumer) -> dict[tuple[str, int], Redeliverable[Admission]]:
        """Send no commit for this consumer any more; return its records that may be delivered again to another one."""
        loop = self._loops.pop(consumer, None)
        if loop is None:
            return {}
        loop.close()
        return loop.offsets.end_epoch()

    async def hold(self, consumer: Consumer, *, timeout_sec: float = COMMIT_REQUEST_TIMEOUT_SEC) -> None:
        """Start no commit for this consumer until `release`; the one in flight is cancelled and awaited.

        A flush in flight is awaited first, for up to `timeout_sec` seconds. A commit that aiokafka retries across a
        rebalance is sent under the new generation, and moved the next owner's offset back: none may be under way then.
        """
        await self._loop_of(consumer).hold(timeout_sec)

    def release(self, consumer: Consumer) -> None:
        """Let commits for this consumer start again: its partitions are assigned."""
        if self.is_alive:
            self._loop_of(consumer).release()

    def renew(self) -> None:
        """Commit committed offsets again, when it is time: a broker expires the offsets of idle groups."""
        if not self.is_alive or not 0 < self._commit_renewal_sec <= self._loop.time() - self._renewed_at:
            return
        self._renewed_at = self._loop.time()
        for loop in self._loops.values():
            loop.offsets.renew()
            loop.request()

    def request(self, consumer: Consumer) -> None:
        """Make a commit of this consumer due now, unless commits are held."""
        if self.is_alive:
            self._loop_of(consumer).request()

    def end_epoch(self, consumer: Consumer) -> None:
        """End the epoch of a consumer's partitions: records that still run count only if they are delivered again."""
        self.watch(consumer).end_epoch()

    async def flush(self, consumer: Consumer, *, timeout_sec: float) -> bool:
        """Commit now what has finished; cancels the request in flight, and waits for another flush first.

        Returns whether everything that has finished is committed. A held consumer stays held. When cancelled, the
        commit may or may not have reached the broker.
        """
        loop = self._loop_of(consumer)
        if self.is_alive:
            await loop.flush(timeout_sec)
        return not loop.offsets.dirty()

    async def commit_all(self, *, flush_timeout_sec: float = COMMIT_REQUEST_TIMEOUT_SEC) -> None:
        """Wait for the tasks that were sent, then commit what has finished, for every consumer.

        The wait takes at most `flush_timeout_sec` seconds, the commits after it at most 5 s; a task that has not
        resolved by then holds back the offset of its partition. A cancellation of this call cancels no task.

        Raises:
            CommitterIsDeadError: the main task has died or was never spawned.

        """
        if not self.is_alive:
            self._raise_dead()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=flush_timeout_sec)
            # The tasks' callbacks, which mark the records as finished, may run only in the next turn of the event loop.
            await asyncio.sleep(0)
        flushes = (self.flush(consumer, timeout_sec=COMMIT_REQUEST_TIMEOUT_SEC) for consumer in list(self._loops))
        await asyncio.gather(*flushes)

    def _raise_dead(self) -> NoReturn:
        raise CommitterIsDeadError("the committer's main task is not running") from self._fatal
