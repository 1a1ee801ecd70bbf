"""What happens when partitions are revoked and assigned: a bounded drain, a commit, a new epoch (I16, I17)."""

import inspect
import logging
from collections.abc import Callable, Collection, MutableMapping
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from typing_extensions import override

from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._record.record import NEVER, Record
from faststream_concurrent_kafka._upstream import consumers
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler


logger = logging.getLogger("faststream_concurrent_kafka")

# The time for the commit if the drain has used up the time of both.
LEAST_COMMIT_SEC = 1.0


class ConcurrentRebalanceListener(ConsumerRebalanceListener):
    """Drains and commits before partitions are revoked, and calls the user's own listener.

    aiokafka rebalances eagerly: every rebalance revokes all partitions, and the group waits meanwhile.
    """

    def __init__(  # noqa: PLR0913 - what it lies between
        self,
        handler: KafkaConcurrentHandler,
        consumer: Any,
        belongs: Callable[[Record], bool],
        outlived_revoke: MutableMapping[Admission, Record],
        *,
        users: Any = None,
        begin: Callable[[], None] | None = None,
        note_eviction: Callable[[], None] | None = None,
    ) -> None:
        self._handler = handler
        self._consumer = consumer
        self._belongs = belongs
        self._outlived_revoke = outlived_revoke
        self._users = users
        self._begin = begin
        self._note_eviction = note_eviction

    @override
    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Wait for running handlers, commit, end the epoch; then call the user's listener."""
        if revoked and self._note_eviction is not None and not consumers.is_member(self._consumer):
            self._note_eviction()
        try:
            # At the first join nothing is revoked, and no drain may wait: a record may await that join.
            if self._handler.is_running and revoked:
                await self._flush(self._consumer)
        finally:
            await self._call_users("on_partitions_revoked", revoked)

    async def _flush(self, consumer: Any) -> None:
        handler, committer = self._handler, self._handler.committer
        timeout_sec = handler.settings.rebalance_flush_timeout_sec
        # Held until partitions are assigned: no commit may be in flight, or be retried inside aiokafka, when the group
        # has a new generation.
        await committer.hold(consumer)
        try:
            deadline = handler.now() + timeout_sec
            if not await handler.records.drain(self._belongs, timeout_sec=timeout_sec):
                running = handler.records.matching(self._belongs)
                logger.warning(
                    "Rebalance: %d records are still being handled after %g s, and may be run by others too, first %r",
                    len(running),
                    timeout_sec,
                    min(running, key=repr),
                )
            await committer.flush(consumer, timeout_sec=max(deadline - handler.now(), LEAST_COMMIT_SEC))
        finally:
            committer.end_epoch(consumer)
            for record in handler.records.matching(self._belongs):
                # The next owner of the partition retries them, also those that were delivered during the commit.
                record.end_by(NEVER)
        # Not started: drop; the next owner of the partition gets them.
        await handler.runner.cancel(lambda record: self._belongs(record) and record.is_idle)
        # These go on. If one of them is delivered to this process again, it is not run a second time.
        self._outlived_revoke.update(
            (each, record) for record in handler.records.matching(self._belongs) for each in record.admissions
        )

    @override
    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Begin the epoch before anything is delivered, let commits start again, then call the user's listener."""
        if self._handler.is_running:
            try:
                if self._begin is not None:
                    self._begin()
            except Exception:
                logger.exception("The positions of the assigned partitions can't be watched")
            finally:
                self._handler.committer.release(self._consumer)
            if self._handler.settings.cancel_lost_handlers:
                self._handler.background.start_helper(self._cancel_lost(frozenset(assigned)))
        await self._call_users("on_partitions_assigned", assigned)

    async def _cancel_lost(self, assigned: Collection[TopicPartition]) -> None:
        def is_lost(record: Record) -> bool:
            places = {TopicPartition(*each.topic_partition) for each in record.admissions}
            return self._belongs(record) and record.is_fenced and places.isdisjoint(assigned)

        for record in await self._handler.runner.cancel(is_lost):
            logger.warning("Cancelled, because its partition went to another member: %r", record)

    async def _call_users(self, callback: str, partitions: Collection[TopicPartition]) -> None:
        if self._users is not None:
            result = getattr(self._users, callback)(partitions)
            if inspect.isawaitable(result):
                await result
