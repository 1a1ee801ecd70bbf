"""A consumer for which the library commits: admits its records, and pauses its partitions."""

import functools
from collections.abc import Callable, Container, Iterator, MutableMapping
from typing import Any

from aiokafka import ConsumerRebalanceListener, ConsumerRecord, TopicPartition

from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka._subscriber.positions import Positions
from faststream_concurrent_kafka._subscriber.window import Window
from faststream_concurrent_kafka._upstream import hooks
from faststream_concurrent_kafka._upstream.pauses import Pauses, Reason
from faststream_concurrent_kafka.batch_committer import KafkaBatchCommitter


class CommittedConsumer:
    """One consumer of an attached subscriber, from the moment before it subscribes until it is stopped."""

    def __init__(  # noqa: PLR0913 - what it lies between
        self,
        name: str,
        consumer: Any,
        committer: KafkaBatchCommitter,
        *,
        window_size: int,
        outlived_revoke: MutableMapping[Admission, Record],
        records: Container[Record],
        wrap_listener: Callable[["CommittedConsumer", Any], ConsumerRebalanceListener],
    ) -> None:
        """Replace the consumer's methods, to watch assignments, positions, seeks and pauses, and to guard commits.

        `outlived_revoke` holds the records that still ran when their partition was revoked; `records` are those in
        flight.
        """
        self.consumer = consumer
        self._committer = committer
        self._outlived_revoke = outlived_revoke
        self._records = records
        self._pauses = Pauses(consumer)
        self._window = Window(window_size, self._pauses)
        self.offsets = committer.watch(consumer)
        self.offsets.on_ack = self._acknowledged
        request = functools.partial(committer.request, consumer)
        self.positions = Positions(name, consumer, self.offsets, self._pauses, request)
        hooks.watch_seeks(consumer, self.offsets.forget_on_seek)
        hooks.guard_commits(consumer)
        hooks.wrap_listeners(
            consumer,
            functools.partial(wrap_listener, self),
            subscribe=self.offsets.subscribe,
            assigned=self.positions.watch,
        )

    def _acknowledged(self, key: tuple[str, int], ledger: PartitionLedger[Admission]) -> None:
        self.positions.acknowledged(key)
        self._window.acknowledged(key, ledger)

    def admit(self, raw: ConsumerRecord[Any, Any]) -> Admission | None:
        """Admit a record; return None if it was delivered before a rebalance, and has finished or still runs.

        Raises:
            CommitterIsDeadError: the committer's main task has died.

        """
        key = (raw.topic, raw.partition)
        admission = Admission(key, raw.offset, hash((raw.timestamp, raw.key)), raw.timestamp)
        earlier = self._committer.admit(self.consumer, admission)
        ledger = admission.ledger
        if ledger.window >= self._window.size:
            self._window.pause(key, ledger)
            self._committer.make_room(admission)
        return None if earlier is not None and self._takes_over(admission, earlier.entry) else admission

    def _takes_over(self, admission: Admission, earlier: Admission | None) -> bool:
        """Let the earlier run of a record count for its new admission; False if that run has left it undone."""
        if earlier is None or earlier.is_finished:
            self._committer.complete(admission)
            return True
        record = self._outlived_revoke.pop(earlier, None)
        if record is None or record not in self._records:
            return False
        record.readmit(earlier, admission)
        return True

    def halt(self, admission: Admission, reason: str) -> None:
        """Fetch nothing more of a record's partition: it and the records behind it are delivered after a restart."""
        admission.ledger.stop_at(admission.offset, reason)
        if (partition := TopicPartition(*admission.topic_partition)) in self.consumer.assignment():
            self._pauses.add(Reason.HALTED, partition)

    def blocked(self) -> Iterator[tuple[TopicPartition, Admission]]:
        """Yield the partitions whose window is full, and the record behind which it is.

        Halted partitions and those that the user has paused are left out: they do not wait for that record.
        """
        for key, partition in self.offsets.partitions.items():
            ledger = partition.ledger
            first = None if ledger is None or ledger.stopped_at is not None else ledger.first_unfinished()
            if first is not None and self._pauses.has(Reason.WINDOW, key) and not self._pauses.has(Reason.USER, key):
                yield TopicPartition(*key), first
