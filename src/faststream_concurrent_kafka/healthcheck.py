"""Whether concurrent processing is healthy, and if not, why."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from faststream import ContextRepo

from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka._record.state import BACKOFF
from faststream_concurrent_kafka._runtime.stack import suspended_at
from faststream_concurrent_kafka.lifespan import CONTEXT_KEY, STOPPED, check_context
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler


__all__ = [
    "HealthReport",
    "PartitionReport",
    "get_kafka_handler_report",
    "is_kafka_handler_alive",
    "is_kafka_handler_healthy",
]

logger: logging.Logger = logging.getLogger("faststream_concurrent_kafka")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PartitionReport:
    """One assigned partition that has delivered records."""

    topic: str
    partition: int
    frontier: int
    """The offset that may be committed: everything below it is finished."""
    acked: int
    """The offset that the broker has confirmed as committed."""
    uncommitted: int
    """Records that were fetched and are not confirmed as committed."""
    unfinished: int
    """Of those, the unfinished ones."""
    oldest_unfinished_offset: int | None
    """The record that pins the frontier, if any."""
    oldest_unfinished_age_sec: float | None
    oldest_unfinished_attempt: int | None
    """The number of its last attempt; 0 = it waits for its order or for a slot."""
    oldest_unfinished_is_retrying: bool
    """Whether it has failed and waits for another attempt."""
    oldest_unfinished_at: str | None
    """The innermost lines at which its task is suspended, outermost first."""
    halted_at: int | None
    """The offset of the first record that was left undone, by `FailurePolicy(then="halt")` or a stop; no record behind
    it is started in this assignment."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """A snapshot of the handler."""

    is_healthy: bool
    problems: tuple[str, ...]
    """The reasons why it is not healthy."""
    in_flight: int
    """Records in flight: admitted, and neither finished nor left undone."""
    waiting: int
    """Of those, the records that wait: for a slot, for their order, for a thread, for a turn of the event loop, or for
    another attempt."""
    retrying: int
    """Of those, the records that have failed and wait for another attempt."""
    loop_lag_sec: float
    """The largest lag of the event loop within the last minute: for so long no other task ran, and no heartbeat was
    sent."""
    partitions: tuple[PartitionReport, ...]


def is_kafka_handler_healthy(context: ContextRepo) -> bool:
    """Whether records are being taken, handled and committed: for readiness and alerts, and not for liveness.

    False before initialising and after stopping, when the observer, the committer or a consumer's loop is dead, when
    commits have been failing for `commit_failure_timeout_sec`, when a partition has got nothing for `stall_timeout_sec`
    although it has records, or a subscriber has not been started, when a consumer is evicted from its group again and
    again, while a partition is halted, while a dead letter can't be published, while a handler goes on that was
    cancelled at its time limit, and for a minute after the event loop was blocked for half a session timeout. Never
    raises, and costs no request to the broker.
    """
    if (mistake := _mistake(context)) is not None:
        logger.error("is_kafka_handler_healthy: %s", mistake)
        return False
    handler = _running(context)
    return handler is not None and handler.is_healthy


def is_kafka_handler_alive(context: ContextRepo) -> bool:
    """Whether a restart of the process would mend nothing: for a liveness probe.

    False when a task has ended that only a new process starts again (the observer, the committer, a subscriber's
    consume loop, the coordination of its group) or the event loop was closed; in a call from another thread, when the
    event loop has been blocked for a minute; and after a stop, also the stop after a failed start, unless another
    context goes on. True before initialising and during a stop, and for all other problems of
    `is_kafka_handler_healthy`: a broker that is down, refused commits, a halted partition or a stuck record would be
    the same after a restart, which only makes records run again.

    Never raises, costs no request to the broker, and may be called from any thread.
    """
    if (mistake := _mistake(context)) is not None:
        # A setup error, which no restart mends.
        logger.error("is_kafka_handler_alive: %s", mistake)
        return True
    known = context.get(CONTEXT_KEY)
    # The handler of the process: after a stop with this context it may serve other contexts, or still be stopping.
    handler = known or KafkaConcurrentHandler.running()
    return not handler.deaths() if isinstance(handler, KafkaConcurrentHandler) else known is not STOPPED


def get_kafka_handler_report(context: ContextRepo) -> HealthReport:
    """Return a snapshot of the handler, with the problems by which `is_kafka_handler_healthy` decides."""
    mistake = _mistake(context)
    handler = _running(context) if mistake is None else None
    if handler is None:
        problems = (mistake or "concurrent processing is not initialised",)
        return HealthReport(
            is_healthy=False, problems=problems, in_flight=0, waiting=0, retrying=0, loop_lag_sec=0.0, partitions=()
        )
    problems = tuple(handler.problems())
    records = {admission: record for record in handler.records for admission in record.admissions}
    return HealthReport(
        is_healthy=not problems,
        problems=problems,
        in_flight=len(handler.records),
        waiting=handler.records.waiting,
        retrying=handler.records.retrying,
        loop_lag_sec=handler.loop_lag.worst_sec,
        partitions=tuple(
            _report(topic, partition, ledger, records, now=handler.now())
            for topic, partition, ledger in handler.committer.partitions()
        ),
    )


def _mistake(context: Any) -> str | None:
    try:
        check_context(context)
    except TypeError as error:
        return str(error)
    return None


def _running(context: ContextRepo) -> KafkaConcurrentHandler | None:
    handler = _known(context)
    return handler if handler is not None and handler.is_running else None


def _known(context: ContextRepo) -> KafkaConcurrentHandler | None:
    known = context.get(CONTEXT_KEY)
    handler = known or KafkaConcurrentHandler.running()
    if known is STOPPED and handler is not None and context not in handler.users:
        # It goes on for other contexts.
        return None
    return handler if isinstance(handler, KafkaConcurrentHandler) else None


def _report(
    topic: str,
    partition: int,
    ledger: PartitionLedger[Admission],
    records: Mapping[Admission, Record],
    *,
    now: float,
) -> PartitionReport:
    oldest = ledger.first_unfinished()
    record = None if oldest is None else records.get(oldest)
    return PartitionReport(
        topic=topic,
        partition=partition,
        frontier=ledger.frontier,
        acked=ledger.acked,
        uncommitted=ledger.window,
        unfinished=ledger.unfinished,
        oldest_unfinished_offset=None if oldest is None else oldest.offset,
        oldest_unfinished_age_sec=None if oldest is None else now - oldest.admitted_at,
        oldest_unfinished_attempt=None if record is None else record.attempt,
        oldest_unfinished_is_retrying=record is not None and record.state is BACKOFF,
        oldest_unfinished_at=None if record is None or record.task is None else suspended_at(record.task),
        halted_at=ledger.stopped_at,
    )
