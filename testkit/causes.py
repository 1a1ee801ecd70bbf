"""Why a record was handled again, judged by the journals of the processes and the log of the faults.

The cause is always how the partition left the process that had the record before. A process's own log line (a drain
timed out, a commit failed) is no excuse alone: there must also be an unfinished record, or a broker fault.
"""

import enum
from array import array
from collections.abc import Mapping, Sequence
from functools import cache

from testkit.history import NS, Delivery, History
from testkit.journal import Epoch, Journal


# For this long after a broker's return, coordinators may still load and members join.
_TAIL_NS = 20 * NS
# A failed commit was sent at most this long before it failed.
_REQUEST_NS = 5 * NS


class Cause(enum.StrEnum):
    """Why a record was handled again."""

    KILL = "kill -9"
    FROZEN = "frozen beyond the session timeout"
    REBALANCE = "unfinished at the drain's deadline of a rebalance"
    BROKER = "commit refused by a broker fault"
    CLEAN_STOP = "clean stop"
    KEPT = "by the same process"
    UNEXPLAINED = "unexplained"


ALLOWED = frozenset({Cause.KILL, Cause.FROZEN, Cause.REBALANCE, Cause.BROKER})


class Causes:
    """Finds the causes of one run."""

    def __init__(
        self, history: History, deliveries: Mapping[int, Sequence[Delivery]], first_ends: "array[int]"
    ) -> None:
        self._topic, self._load, self._log = history.topic, history.load, history.log
        self._tells = history.tells
        self._deliveries = deliveries
        self._first_ends = first_ends
        self._finished_up_to = cache(self._latest_first_ends)
        self._first_place = cache(self._lowest_place_in)

    def of(self, earlier: Sequence[Delivery], later: Delivery) -> Cause | None:
        """Return why a record was delivered again after its earlier deliveries, by time; None if its process had to."""
        mine = [each for each in earlier if each.worker == later.worker]
        if mine:
            # A record that failed for the last time between a rebalance and its next delivery is not a dead letter yet.
            is_left = all(each.needs_another or (each.is_late and self._load.is_dead(each.number)) for each in mine)
            return None if is_left else Cause.KEPT
        before, begins, number = earlier[-1], later.start_ns, later.number
        partition = self._topic.partition_of[number]
        epoch_after = later.journal.epoch_at(begins, partition)
        epoch_before = self._last_epoch_of(before, begins)
        if epoch_before is None:
            # The process was killed between its first record and the callback with its assignment.
            return Cause.KILL if self._was_killed(before, None) else Cause.UNEXPLAINED
        if epoch_after is not None and epoch_before.assigned_ns > epoch_after.assigned_ns:
            return self._why_outdated(later, epoch_after, begins)
        return self._why_let_go(before, epoch_before, later)

    def _last_epoch_of(self, delivery: Delivery, before_ns: int) -> Epoch | None:
        """Return the last epoch in which a process may have admitted a record again that it had handled before.

        A process that was asked to stop admits no record, but it may be assigned partitions until it has left.
        """
        journal, partition = delivery.journal, self._topic.partition_of[delivery.number]
        its_own = journal.epoch_at(delivery.start_ns, partition)
        term_ns = self._log.fates[delivery.worker].term_ns
        last = journal.last_epoch_before(before_ns if term_ns is None else min(before_ns, term_ns), partition)
        if its_own is not None and last is not None:
            return max(its_own, last, key=lambda epoch: epoch.assigned_ns)
        return its_own or last

    def _was_killed(self, delivery: Delivery, epoch: Epoch | None) -> bool:
        killed = self._log.fates[delivery.worker].kill_ns is not None and delivery.journal.left_ns is None
        return killed and (epoch is None or epoch.revoked_ns is None)

    def _why_outdated(self, delivery: Delivery, epoch: Epoch, at_ns: int) -> Cause:
        """Return why a process had not noticed that another one owned its partition."""
        if self._log.fates[delivery.worker].was_frozen_between(epoch.assigned_ns, at_ns):
            return Cause.FROZEN
        return Cause.BROKER if self._broker_was_away(delivery.journal, epoch.assigned_ns, at_ns) else Cause.UNEXPLAINED

    def _why_let_go(self, before: Delivery, epoch: Epoch, later: Delivery) -> Cause:
        fate, journal = self._log.fates[before.worker], before.journal
        ends = [epoch.revoked_ns, journal.left_ns, fate.kill_ns if journal.left_ns is None else None, later.start_ns]
        end_ns = min(each for each in ends if each is not None)
        if fate.was_frozen_between(epoch.assigned_ns, end_ns):
            return Cause.FROZEN
        if self._was_killed(before, epoch):
            return Cause.KILL
        if epoch.revoked_ns is not None:
            gave_up = [
                at_ns
                for at_ns, text in journal.said
                if epoch.assigned_ns < at_ns <= epoch.revoked_ns and "Rebalance: " in text
            ]
            if gave_up and self._was_unfinished(before, later, gave_up[-1]):
                return Cause.REBALANCE
        if self._broker_was_away(journal, epoch.assigned_ns, end_ns):
            return Cause.BROKER
        was_stopped = journal.left_ns == end_ns or (fate.term_ns is not None and fate.term_ns <= end_ns)
        return Cause.CLEAN_STOP if was_stopped else Cause.UNEXPLAINED

    def _broker_was_away(self, journal: Journal, begin_ns: int, end_ns: int) -> bool:
        """Whether the last log line about commits says that they fail, and there was a broker fault."""
        words = [
            said
            for said in journal.said
            if begin_ns < said.at_ns <= end_ns and ("ommit" in said.text or "ffset" in said.text)
        ]
        if not words or "succeed again" in words[-1].text:
            return False
        return self._log.has_trouble_between(words[-1].at_ns - _REQUEST_NS, end_ns, _TAIL_NS)

    def _was_unfinished(self, before: Delivery, later: Delivery, at_ns: int) -> bool:
        """Whether an unfinished record kept the committed offset at or below this record.

        That is a record that no process had finished, or the one with which the next process began. If commits had
        metadata, only the record itself counts.
        """
        number, handled = later.number, self._deliveries
        if self._tells:
            return self._first_ends[number] > at_ns
        partition, place = self._topic.partition_of[number], self._topic.place_of[number]
        if self._finished_up_to(partition)[place] > at_ns:
            return True
        first = self._topic.partitions[partition][self._first_place(partition, later.worker, later.epoch)]
        return not any(
            each.worker == before.worker and each.end_ns is not None and each.end_ns < at_ns for each in handled[first]
        )

    def _latest_first_ends(self, partition: int) -> "array[int]":
        """Return, for each place of a partition, when all records up to it had been finished at least once."""
        latest, found = 0, array("q")
        for number in self._topic.partitions[partition]:
            latest = max(latest, self._first_ends[number])
            found.append(latest)
        return found

    def _lowest_place_in(self, partition: int, worker: int, epoch: int) -> int:
        """Return the lowest place of a partition that a process began with in an epoch."""
        return min(
            place
            for place, number in enumerate(self._topic.partitions[partition])
            for each in self._deliveries.get(number, ())
            if each.worker == worker and each.epoch == epoch
        )
