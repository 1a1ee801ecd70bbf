"""Why a record was begun again: decided by the ledgers of those who had it, and by what the nemesis did to them.

The question is always how the partition left the process that had the record before. What a process says of itself
(that a drain ran out of time, that a commit failed) excuses nothing alone: an unfinished record, or a broker that was
away, has to go with it.
"""

import dataclasses
import enum
from array import array
from collections.abc import Mapping, Sequence
from functools import cache

from chaos.ledger import Epoch, Handlings, Life
from chaos.log import Log


NS = 1_000_000_000
# So long after a broker is back, coordinators may still be loading and members joining.
_TAIL_NS = 20 * NS
# A commit that fails was sent so long before at most.
_REQUEST_NS = 5 * NS


class Cause(enum.StrEnum):
    """Why a record was begun again."""

    KILL = "kill -9"
    FROZEN = "frozen beyond the session timeout"
    REBALANCE = "unfinished at the drain's deadline of a rebalance"
    BROKER = "commit refused by a broker fault"
    CLEAN_STOP = "clean stop"
    KEPT = "by the same process"
    UNEXPLAINED = "unexplained"


ALLOWED = frozenset({Cause.KILL, Cause.FROZEN, Cause.REBALANCE, Cause.BROKER})


@dataclasses.dataclass(frozen=True, slots=True)
class Topic:
    """What is in the topic, read back: the numbers of each partition, in the order of their offsets."""

    partitions: "Sequence[array[int]]"
    partition_of: "array[int]"
    """Of each number; -1 = it is not there."""
    place_of: "array[int]"
    """Of each number: how many come before it in its partition."""

    @classmethod
    def of(cls, partitions: "Sequence[array[int]]", records: int) -> "Topic":
        """Sort the numbers; of one that is there twice, the first counts."""
        partition_of, place_of = array("h", [-1]) * records, array("I", [0]) * records
        for partition, numbers in enumerate(partitions):
            for place, number in enumerate(numbers):
                if partition_of[number] < 0:
                    partition_of[number], place_of[number] = partition, place
        return cls(partitions, partition_of, place_of)

    @property
    def twice(self) -> int:
        """How many records are there more often than once."""
        return sum(map(len, self.partitions)) - sum(partition >= 0 for partition in self.partition_of)


class Causes:
    """Answers for one run."""

    def __init__(
        self, topic: Topic, handlings: Handlings, lives: Mapping[int, Life], log: Log, first_ends: "array[int]"
    ) -> None:
        self._topic = topic
        self._handlings = handlings
        self._lives = lives
        self._log = log
        self._first_ends = first_ends
        self._finished_up_to = cache(self._latest_first_ends)
        self._first_place = cache(self._lowest_place_in)

    def of(self, number: int, earlier: Sequence[int], later: int) -> Cause:
        """Say why handling `later` of a record came after those before it, all by their indexes, by time."""
        lives, begins = self._handlings.lives, self._handlings.starts[later]
        after = self._lives[lives[later]]
        if any(lives[each] == after.index for each in earlier):
            return Cause.KEPT
        before = self._lives[lives[earlier[-1]]]
        partition = self._topic.partition_of[number]
        epoch_after = after.epoch_at(begins, partition)
        epoch_before = self._last_epoch_of(before, earlier[-1], begins)
        if epoch_before is None:
            # It was killed between its first record and the call that tells of its assignment.
            return Cause.KILL if self._was_killed(before, None) else Cause.UNEXPLAINED
        if epoch_after is not None and epoch_before.assigned_ns > epoch_after.assigned_ns:
            return self._why_outdated(after, epoch_after, begins)
        return self._why_let_go(before, epoch_before, number, later)

    def _last_epoch_of(self, life: Life, handling: int, before_ns: int) -> Epoch | None:
        """Return the last epoch in which a process may have taken a record on again that it had handled before.

        One that has been told to stop takes nothing on, though it may be assigned partitions until it has left.
        """
        partition = self._topic.partition_of[self._handlings.numbers[handling]]
        its_own = life.epoch_at(self._handlings.starts[handling], partition)
        term_ns = self._log.fates[life.index].term_ns
        last = life.last_epoch_before(before_ns if term_ns is None else min(before_ns, term_ns), partition)
        if its_own is not None and last is not None:
            return max(its_own, last, key=lambda epoch: epoch.assigned_ns)
        return its_own or last

    def _was_killed(self, life: Life, epoch: Epoch | None) -> bool:
        killed = self._log.fates[life.index].kill_ns is not None and life.left_ns is None
        return killed and (epoch is None or epoch.revoked_ns is None)

    def _why_outdated(self, life: Life, epoch: Epoch, at_ns: int) -> Cause:
        """Say why a process had not noticed that its partition was somebody else's."""
        if self._log.fates[life.index].was_frozen_between(epoch.assigned_ns, at_ns):
            return Cause.FROZEN
        return Cause.BROKER if self._broker_was_away(life, epoch.assigned_ns, at_ns) else Cause.UNEXPLAINED

    def _why_let_go(self, life: Life, epoch: Epoch, number: int, later: int) -> Cause:
        fate, begins = self._log.fates[life.index], self._handlings.starts[later]
        ends = [epoch.revoked_ns, life.left_ns, fate.kill_ns if life.left_ns is None else None, begins]
        end_ns = min(each for each in ends if each is not None)
        if fate.was_frozen_between(epoch.assigned_ns, end_ns):
            return Cause.FROZEN
        if self._was_killed(life, epoch):
            return Cause.KILL
        if epoch.revoked_ns is not None:
            gave_up = [
                at_ns
                for at_ns, text in life.said
                if epoch.assigned_ns < at_ns <= epoch.revoked_ns and "Rebalance: " in text
            ]
            if gave_up and self._was_unfinished(number, life, later, gave_up[-1]):
                return Cause.REBALANCE
        if self._broker_was_away(life, epoch.assigned_ns, end_ns):
            return Cause.BROKER
        was_stopped = life.left_ns == end_ns or (fate.term_ns is not None and fate.term_ns <= end_ns)
        return Cause.CLEAN_STOP if was_stopped else Cause.UNEXPLAINED

    def _broker_was_away(self, life: Life, begin_ns: int, end_ns: int) -> bool:
        """Whether its last word on commits is that they fail, and a broker is to blame."""
        words = [
            said
            for said in life.said
            if begin_ns < said.at_ns <= end_ns and ("ommit" in said.text or "ffset" in said.text)
        ]
        if not words or "succeed again" in words[-1].text:
            return False
        return self._log.has_trouble_between(words[-1].at_ns - _REQUEST_NS, end_ns, _TAIL_NS)

    def _was_unfinished(self, number: int, life: Life, later: int, at_ns: int) -> bool:
        """Whether a record was unfinished that held the offset of its partition at or below this one.

        That is one that nobody had finished, or the very one with which the next process has begun.
        """
        partition, place = self._topic.partition_of[number], self._topic.place_of[number]
        if self._finished_up_to(partition)[place] > at_ns:
            return True
        first = self._topic.partitions[partition][self._first_place(partition, later)]
        handled = self._handlings
        return not any(0 < handled.ends[each] < at_ns for each in life.handlings if handled.numbers[each] == first)

    def _latest_first_ends(self, partition: int) -> "array[int]":
        """Return for each place when the last of the records up to there was finished for the first time."""
        latest, found = 0, array("q")
        for number in self._topic.partitions[partition]:
            latest = max(latest, self._first_ends[number])
            found.append(latest)
        return found

    def _lowest_place_in(self, partition: int, later: int) -> int:
        """Return the lowest place in a partition that the process of a handling has begun in that epoch."""
        handled, topic = self._handlings, self._topic
        life = self._lives[handled.lives[later]]
        epoch = life.epoch_at(handled.starts[later], partition)
        return min(
            topic.place_of[handled.numbers[each]]
            for each in life.handlings
            if topic.partition_of[handled.numbers[each]] == partition
            and life.epoch_at(handled.starts[each], partition) is epoch
        )
