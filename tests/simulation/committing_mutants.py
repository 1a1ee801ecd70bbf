"""Mutants of ledgers, adoption, rebalances and commits."""

import asyncio
from typing import Any

import pytest

from faststream_concurrent_kafka._commit import loop as commit_loop
from faststream_concurrent_kafka._commit import request as commit_request
from faststream_concurrent_kafka._commit.consumer import ConsumerOffsets
from faststream_concurrent_kafka._commit.failure import CommitFailure
from faststream_concurrent_kafka._commit.loop import CommitLoop
from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._partition.redelivery import Earlier, Redeliverable
from faststream_concurrent_kafka._partition.state import Partition
from faststream_concurrent_kafka._record.in_flight import InFlight
from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka._record.runner import Runner
from faststream_concurrent_kafka._subscriber.attachment import SubscriberAttachment
from faststream_concurrent_kafka._subscriber.consumer import CommittedConsumer
from faststream_concurrent_kafka._subscriber.positions import Positions
from faststream_concurrent_kafka._subscriber.shared_stop import SharedStop
from faststream_concurrent_kafka._upstream import hooks
from faststream_concurrent_kafka.batch_committer import KafkaBatchCommitter
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler
from tests.simulation.mutant import mutant


# -- the ledger ----------------------------------------------------------------------------------------------------


@mutant("committed <= first unfinished")
def frontier_is_the_admitted_mark(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PartitionLedger, "frontier", property(lambda self: self.admitted))


@mutant("committed <= first unfinished")
def frontier_is_one_too_far(patch: pytest.MonkeyPatch) -> None:
    frontier = PartitionLedger.frontier.fget
    patch.setattr(PartitionLedger, "frontier", property(lambda self: min(frontier(self) + 1, self.admitted)))


@mutant("everything is committed in the end", "no acknowledged record is remembered")
def ack_forgets_nothing(patch: pytest.MonkeyPatch) -> None:
    def ack(self: Any, offset: int, finished: int = 0) -> None:
        self.acked, self.finished_acked = max(self.acked, offset), max(self.finished_acked, finished)

    patch.setattr(PartitionLedger, "ack", ack)


@mutant("window", "handled once", "everything is committed in the end", "committed before partitions go")
def ack_forgets_everything(patch: pytest.MonkeyPatch) -> None:
    ack = PartitionLedger.ack
    patch.setattr(PartitionLedger, "ack", lambda self, _offset, *more: ack(self, self.admitted, *more))


@mutant("no overlap with itself", "committed <= first unfinished", "handled once")
def epoch_stays_open(patch: pytest.MonkeyPatch) -> None:
    def end_epoch(self: Any) -> None:
        if self.ledger is not None:
            self.redeliverable = self.redeliverable or Redeliverable()
            self.redeliverable.absorb(self.ledger)

    patch.setattr(Partition, "end_epoch", end_epoch)


# -- adoption ------------------------------------------------------------------------------------------------------


@mutant("handled once", "no overlap with itself")
def nothing_is_adopted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Redeliverable, "absorb", lambda _self, _ledger: None)


@mutant("handled once", "no overlap with itself", "the age of a record is reported")
def running_records_are_not_adopted(patch: pytest.MonkeyPatch) -> None:
    takes_over = CommittedConsumer._takes_over
    patch.setattr(
        CommittedConsumer,
        "_takes_over",
        lambda self, task, earlier: (earlier is None or earlier.is_finished) and takes_over(self, task, earlier),
    )


@mutant("committed <= first unfinished", "everything is committed in the end", "order")
def every_redelivered_record_counts_as_finished(patch: pytest.MonkeyPatch) -> None:
    claim = Redeliverable.claim
    patch.setattr(Redeliverable, "claim", lambda *arguments: claim(*arguments) and Earlier(None))


@mutant("no acknowledged record is remembered")
def records_committed_by_others_are_remembered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Redeliverable, "begin", lambda _self, _offset: None)


@mutant("the age of a record is reported")
def adopted_records_are_as_old_as_their_last_delivery(patch: pytest.MonkeyPatch) -> None:
    takes_over = CommittedConsumer._takes_over

    def takes_over_as_new(self: Any, admission: Any, earlier: Any) -> bool:
        admitted_at = admission.admitted_at
        is_taken_over = takes_over(self, admission, earlier)
        admission.admitted_at = admitted_at
        return is_taken_over

    patch.setattr(CommittedConsumer, "_takes_over", takes_over_as_new)


# -- rebalances ----------------------------------------------------------------------------------------------------


@mutant("committed before partitions go", "committed by a clean stop")
def flush_comes_before_the_drain(patch: pytest.MonkeyPatch) -> None:
    drain, flush = InFlight.drain, KafkaBatchCommitter.flush

    async def drain_last(self: Any, belongs: Any, **options: Any) -> bool:
        handler = KafkaConcurrentHandler.running()
        if handler is not None:
            for source in handler.sources:
                if isinstance(source, SubscriberAttachment) and source.consumer is not None:
                    await flush(handler.committer, source.consumer, timeout_sec=1.0)
        return await drain(self, belongs, **options)

    async def no_flush(_self: Any, _consumer: Any, *, timeout_sec: float) -> bool:  # noqa: ARG001
        return True

    patch.setattr(InFlight, "drain", drain_last)
    patch.setattr(KafkaBatchCommitter, "flush", no_flush)


@mutant("committed in time", "everything is committed in the end", "committed before partitions go")
def commits_are_never_released(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KafkaBatchCommitter, "release", lambda _self, _consumer: None)


@mutant("no record begins in a revoked partition")
def waiting_records_are_not_dropped(patch: pytest.MonkeyPatch) -> None:
    cancel = Runner.cancel

    async def cancel_running(self: Any, belongs: Any) -> Any:
        return await cancel(self, lambda record: belongs(record) and not record.is_idle)

    patch.setattr(Runner, "cancel", cancel_running)


# Needs a stop or another rebalance, and a handler that outlasts the one before and fails: one seed in a thousand.
@mutant("no record begins in a revoked partition", first=2140, within=50)
def fenced_records_are_retried(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Record, "is_fenced", property(lambda _self: False))


# -- commits -------------------------------------------------------------------------------------------------------


@mutant("everything is committed in the end", "handled once", "no overlap with itself")
def failed_commits_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    failed = CommitLoop._failed

    def forget(self: Any, error: BaseException) -> None:
        for key, offset in self.offsets.dirty().items():
            self.offsets.partitions[key].ledger.ack(offset)
        failed(self, error)

    patch.setattr(CommitLoop, "_failed", forget)


@mutant("everything is committed in the end", "committed in time", "committed before partitions go", "no traceback")
def every_failed_commit_is_fatal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commit_loop, "classify", lambda _error: CommitFailure.FATAL)


@mutant("committed by a clean stop")
def stop_does_not_commit(patch: pytest.MonkeyPatch) -> None:
    stop, flush = SubscriberAttachment._stop, KafkaBatchCommitter.flush
    stopping: set[int] = set()

    async def stop_(self: Any, shared: SharedStop) -> None:
        stopping.add(id(self.consumer))
        await stop(self, shared)

    async def flush_(self: Any, consumer: Any, *, timeout_sec: float) -> bool:
        return id(consumer) in stopping or await flush(self, consumer, timeout_sec=timeout_sec)

    patch.setattr(SubscriberAttachment, "_stop", stop_)
    patch.setattr(KafkaBatchCommitter, "flush", flush_)


@mutant("committed in time")
def nothing_wakes_the_committer_in_time(patch: pytest.MonkeyPatch) -> None:
    init = KafkaBatchCommitter.__init__

    def slow(self: Any, **options: Any) -> None:
        init(self, **options | {"commit_batch_timeout_sec": options["commit_batch_timeout_sec"] + 5})

    patch.setattr(KafkaBatchCommitter, "__init__", slow)


@mutant("commits go forward", "order", twist="thrown out")
def a_consumer_that_is_no_member_commits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hooks, "guard_commits", lambda _consumer: None)


class _NoLock(asyncio.Semaphore):
    def __init__(self) -> None:
        super().__init__(1000)


@mutant("committed before partitions go", "committed by a clean stop", first=240)
def a_stop_and_a_rebalance_cancel_each_others_commit(patch: pytest.MonkeyPatch) -> None:
    init = CommitLoop.__init__

    def unlocked(self: Any, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        self._flushing = _NoLock()

    patch.setattr(CommitLoop, "__init__", unlocked)


@mutant("records listed in metadata are not handled again")
def metadata_is_not_read(patch: pytest.MonkeyPatch) -> None:
    committed = Positions.committed
    patch.setattr(Positions, "committed", lambda self, key, offset, _metadata: committed(self, key, offset, ""))


@mutant("window", first=150, twist="seeks")
def an_acknowledgement_of_an_earlier_epoch_counts(patch: pytest.MonkeyPatch) -> None:
    def acknowledge(self: Any, taken: Any) -> None:
        for key, each in taken.items():
            each.ledger.ack(each.frontier, each.finished)
            if self.on_ack is not None:
                self.on_ack(key, each.ledger)

    patch.setattr(ConsumerOffsets, "acknowledge", acknowledge)


@mutant("committed before partitions go", "committed by a clean stop", first=190, within=60, twist="one refused")
def the_last_commit_is_that_of_refused_partitions(patch: pytest.MonkeyPatch) -> None:
    commit_last = commit_loop.commit_last

    async def refused_first(offsets: Any, *, timeout_sec: float) -> Any:
        if refused := offsets.refused():
            return await commit_request._commit_refused(offsets, refused, timeout_sec)
        return await commit_last(offsets, timeout_sec=timeout_sec)

    patch.setattr(commit_loop, "commit_last", refused_first)
