"""Is concurrent processing well, and if not, why."""

import dataclasses
from typing import Any

from faststream import ContextRepo

from faststream_concurrent_kafka.middleware import CONTEXT_KEY
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler


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
    """Of those, the ones that still need work."""
    oldest_unfinished_offset: int | None
    oldest_unfinished_age_sec: float | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """A moment's picture of the handler."""

    is_healthy: bool
    problems: tuple[str, ...]
    """Why it is not healthy, in words."""
    in_flight: int
    """Records whose handling has not ended."""
    waiting: int
    """Of those, the ones that wait for a free slot or to be handled again."""
    partitions: tuple[PartitionReport, ...]


def is_kafka_handler_healthy(context: ContextRepo) -> bool:
    """Whether records are being taken, handled and committed; never raises, and costs no request to the broker.

    False before initialising and after stopping, when the observer, the committer or a consumer's loop is dead, and
    when commits have been failing for `commit_failure_timeout_sec`.
    """
    return get_kafka_handler_report(context).is_healthy


def get_kafka_handler_report(context: ContextRepo) -> HealthReport:
    """Return what `is_kafka_handler_healthy` decides by."""
    handler = context.get(CONTEXT_KEY) or KafkaConcurrentHandler.running()
    if handler is None or not handler.is_running:
        problems = ("concurrent processing is not initialised",)
        return HealthReport(is_healthy=False, problems=problems, in_flight=0, waiting=0, partitions=())
    problems = tuple(handler.problems())
    return HealthReport(
        is_healthy=not problems,
        problems=problems,
        in_flight=handler.in_flight,
        waiting=handler.waiting,
        partitions=tuple(_report(*item, now=handler.now()) for item in handler.committer.partitions()),
    )


def _report(topic: str, partition: int, ledger: Any, *, now: float) -> PartitionReport:
    oldest = ledger.first_unfinished()
    return PartitionReport(
        topic=topic,
        partition=partition,
        frontier=ledger.frontier,
        acked=ledger.acked,
        uncommitted=ledger.window,
        unfinished=ledger.unfinished,
        oldest_unfinished_offset=None if oldest is None else oldest.offset,
        oldest_unfinished_age_sec=None if oldest is None else now - oldest.admitted_at,
    )
