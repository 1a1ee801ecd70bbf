"""The window of a partition: how many records may be fetched and not acknowledged; a full one pauses it alone (I24)."""

from aiokafka import TopicPartition

from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._upstream.pauses import Pauses, Reason


class Window:
    """The windows of the partitions of one consumer."""

    def __init__(self, size: int, pauses: Pauses) -> None:
        self.size = size
        # The free places from which a partition is resumed. Not one: each pause throws away what was fetched.
        self._enough = max(1, size // 8)
        self._pauses = pauses

    def pause(self, key: tuple[str, int], ledger: PartitionLedger[Admission]) -> None:
        """Pause a partition whose window is full."""
        ledger.room_wanted = self._enough
        if not self._pauses.has(Reason.WINDOW, key):
            self._pauses.add(Reason.WINDOW, TopicPartition(*key))

    def acknowledged(self, key: tuple[str, int], ledger: PartitionLedger[Admission]) -> None:
        """Resume a partition whose window has enough free places, or all that it will have until its frontier moves."""
        room = self.size - ledger.window
        if room < self._enough and (room <= 0 or ledger.frontier > ledger.acked):
            return
        ledger.room_wanted = 0
        if self._pauses.has(Reason.WINDOW, key):
            self._pauses.remove(Reason.WINDOW, TopicPartition(*key))
