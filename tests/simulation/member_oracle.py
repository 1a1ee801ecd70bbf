"""Checks what must hold for one process of the group."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from typing_extensions import override

from faststream_concurrent_kafka.batch_committer import COMMIT_REQUEST_TIMEOUT_SEC
from faststream_concurrent_kafka.testing.broker import Record
from tests.simulation.kafka import LATE_SEC, Witness
from tests.simulation.oracle import Oracle
from tests.simulation.plan import Script


# Without a fault, a commit arrives at the broker this long after it is due.
COMMIT_LATENCY_SEC = 0.9
NEVER = float("inf")
# At most this many records may be fetched before other tasks run.
_MOST_GETS_AT_ONCE = 64
_EXACT_SEC = 1e-6


class MemberOracle(Witness):
    """What one process of the group has done since its start."""

    def __init__(self, oracle: Oracle, name: str, turns: Callable[[], int]) -> None:
        self._oracle = oracle
        self._turns = turns
        self._gets_of_turn = (0, 0)
        self._plan = oracle.plan
        self.name = name
        self.is_gone = False
        self.is_broken = False
        self.has_lost_membership = False
        self.running: dict[int, Pass] = {}
        self.finished_at: dict[int, float] = {}
        self._attempts: dict[int, int] = {}
        self._settings = oracle.plan.settings
        self._positions: dict[int, int] = {}
        self._delivered: dict[int, dict[int, float]] = {}
        self._unacked: dict[int, deque[int]] = {}
        self._walls: dict[int, tuple[int, float]] = {}
        self._listed: set[int] = set()
        self._sent_at = self._stop_sent_at = NEVER
        self._requests = 0
        self._pending: dict[int, float] = {}
        self._disturbed_at = -1.0
        # Refused partitions, until one of their commits is accepted: their commits are sent rarely, and after the
        # others.
        self._refused: set[int] = set()
        self._held_up_until = 0.0
        self._paused: set[int] = set()
        self._moved_at: dict[int, float] = {}
        self._sought: dict[int, float] = {}
        self._may_run_again: set[int] = set()
        # When finished records that are handled again after a seek were delivered.
        self._again_at: dict[int, float] = {}
        self._since = self._stopping_since = 0.0
        self._is_between = True
        self.is_stopping = False

    @property
    def is_rebalancing(self) -> bool:
        """Whether its partitions are being revoked, or are not assigned yet."""
        return self._is_between

    def note(self, what: str, *more: Any) -> None:
        if not self.is_gone:
            self._oracle.note(self.name, what, *more)

    def violated(self, invariant: str, *more: Any) -> None:
        if not self.is_gone:
            self._oracle.violated(self.name, invariant, *more)

    # -- the broker ------------------------------------------------------------------------------------------------

    @override
    def asks(self) -> int:
        self._requests += 1
        self._pending[self._requests] = self._oracle.now()
        return self._requests

    @override
    def is_answered(self, request: int, error: Exception | None) -> None:
        now = self._oracle.now()
        if error is not None:
            self.note("gets an error", repr(error))
            # An error that no broker sends: this process commits no more.
            self.is_broken |= not isinstance(error, KafkaError)
        if now - self._pending.pop(request) >= LATE_SEC or error is not None:
            self._disturbed_at = now

    @override
    def is_refused(self, partitions: Mapping[int, Exception]) -> None:
        self.note("is refused", *partitions)
        self._refused |= partitions.keys()
        if any(isinstance(error, KafkaError) and error.retriable for error in partitions.values()):
            # aiokafka goes on with the request, and the library allows it this long.
            self._held_up_until = self._oracle.now() + COMMIT_REQUEST_TIMEOUT_SEC

    def _was_calm_since(self, moment: float) -> bool:
        late = any(self._oracle.now() - began >= LATE_SEC for began in self._pending.values())
        return not (late or self._disturbed_at >= moment or self.has_lost_membership or self.is_broken)

    @override
    def gets(self, record: Record) -> None:
        script = self._oracle.offsets[record.partition][record.offset]
        self.note("gets", script.number)
        if script.partition in self._paused:
            self.violated("a pause of the user's holds", script.number)
        if self._is_behind_a_wall(script):
            self.violated("halted", script.number, "is fetched behind", self._walls[script.partition][0])
        turn, count = self._gets_of_turn
        self._gets_of_turn = (self._turns(), count + 1 if turn == self._turns() else 1)
        if count >= _MOST_GETS_AT_ONCE:
            self.violated("the event loop gets its turn", script.number)
        if self.is_stopping:
            # Delivered by a pending `getone`: the library does not admit it.
            return
        delivered = self._delivered[script.partition]
        if not delivered and script.partition in self._positions:
            # Another member may have committed since the assignment, before this one asked for its position.
            found = min(script.offset, self._oracle.committed[script.partition])
            self._positions[script.partition] = max(self._positions[script.partition], found)
        delivered[script.offset] = self._oracle.now()
        if script.number in self._again_at:
            self._again_at[script.number] = self._oracle.now()
        unacked = self._unacked[script.partition]
        unacked.append(script.offset)
        if len(unacked) > self._settings.window:
            self.violated("window", script.number, list(unacked))
        if script.kind == "of another group":
            self._finish(script)

    @override
    def sends_commit(self) -> None:
        self._sent_at = self._stop_sent_at = self._oracle.now()

    @override
    def has_committed(self, offsets: dict[TopicPartition, int], sent_at: float) -> None:
        if self.is_gone:
            self.violated("no commit after the end", offsets)
            return
        for tp, offset in sorted(offsets.items()):
            before = self._oracle.committed[tp.partition]
            self.note("commits", tp.partition, offset)
            if offset < before and not self._oracle.may_go_back(tp.partition, offset):
                self.violated("commits go forward", tp.partition, before, offset)
            self._oracle.committed[tp.partition] = offset
            self._oracle.has_commit.add(tp.partition)
            self._refused.discard(tp.partition)
            self._oracle.listed[tp.partition] = (offset, *self._finished_above(tp.partition, offset, sent_at))
            for number in self._unfinished_between(tp.partition, before, offset):
                if self._again_at.get(number, -1.0) >= sent_at:
                    # The record had finished when the commit was sent, and was delivered again only later.
                    continue
                self.violated("committed <= first unfinished", tp.partition, offset, "record", number)

    def _unfinished_between(self, partition: int, begin: int, end: int) -> Iterator[int]:
        for offset, script in self._oracle.offsets[partition].items():
            if begin <= offset < end and not self._has_finished(script.number):
                yield script.number

    def _has_finished(self, number: int) -> bool:
        """Whether this process knows that a record has finished; with metadata, also by that of other members."""
        return number in (self._oracle.finished if self._settings.commit_metadata else self.finished_at)

    def _finished_above(self, partition: int, committed: int, sent_at: float) -> tuple[set[int], set[int]]:
        """Return the records that the metadata of a commit must list, and those that it may list."""
        if not self._settings.commit_metadata:
            return set(), set()
        delivered = self._delivered.get(partition, {})
        scripts = {offset: each for offset, each in self._oracle.offsets[partition].items() if offset >= committed}
        finished = {offset: (each.number, self.finished_at.get(each.number, NEVER)) for offset, each in scripts.items()}
        read = self._listed & {each.number for each in scripts.values()}
        must = {number for offset, (number, at) in finished.items() if max(at, delivered.get(offset, NEVER)) < sent_at}
        # Those of an earlier assignment as well, if the record at the committed offset is known.
        may = {number for number, at in finished.values() if at <= sent_at}
        return must | read, may | read

    @override
    def knows_committed(self, offsets: dict[TopicPartition, int], sent_at: float) -> None:
        for tp, offset in offsets.items():
            if sent_at < self._moved_at.get(tp.partition, -1.0):
                # For records that were delivered again since: a commit sent at that very moment may be of either
                # delivery.
                continue
            unacked = self._unacked.get(tp.partition, deque())
            while unacked and unacked[0] < offset:
                unacked.popleft()

    @override
    def revoking(self) -> None:
        self.note("revoking")
        self._is_between = True
        self._since, self._sent_at = self._oracle.now(), NEVER

    @override
    def revoked(self) -> None:
        self.note("revoked")
        if self._was_calm_since(self._since):
            self.check_committed("committed before partitions go", min(self._sent_at, self._oracle.now()))
        # A seek ends with the assignment: records that were not delivered again by now may be handled again, or not.
        for number, finished_at in self._sought.items():
            if self._again_at[number] == NEVER:
                self.finished_at[number] = finished_at
                self._may_run_again.add(number)
        self._sought = {}
        self._positions, self._delivered, self._unacked, self._walls = {}, {}, {}, {}
        self._paused = set()

    @override
    def assigned(self, positions: dict[TopicPartition, int]) -> None:
        self.note("assigned", {tp.partition: offset for tp, offset in positions.items()})
        self._positions = {tp.partition: offset for tp, offset in positions.items()}
        self._delivered = {tp.partition: {} for tp in positions}
        self._unacked = {tp.partition: deque() for tp in positions}
        self._walls = {}
        self._listed = set()
        for partition, offset in self._positions.items():
            committed, listed, _ = self._oracle.listed.get(partition, (-1, set(), set()))
            if committed == offset:
                self._listed |= listed
        self.has_lost_membership = False
        self._is_between = False
        self._since = self._oracle.now()

    @override
    def published(self, value: bytes | None) -> None:
        script = self._oracle.scripts[number_of(value)]
        self.note("has published", script.number)
        self._finish(script)

    @override
    def resets(self, positions: dict[TopicPartition, int]) -> None:
        if not self.is_gone:
            for tp, offset in sorted(positions.items()):
                self._oracle.resets(tp.partition, offset)
                if tp.partition in self._positions and tp.partition not in self._oracle.has_commit:
                    self._positions[tp.partition] = offset

    @override
    def is_evicted(self) -> None:
        self.violated("a member goes on polling", "evicted at", self._oracle.now())
        self.has_lost_membership = True

    # -- the user --------------------------------------------------------------------------------------------------

    def subscribes(self) -> None:
        """Note that the user subscribes: aiokafka has no assignment from then on, and commits nothing."""
        self.note("subscribes")
        self._disturbed_at = self._oracle.now()

    def pauses(self, partition: int) -> None:
        """Note that the user has paused a partition."""
        self.note("pauses", partition)
        self._paused.add(partition)

    def resumes(self, partition: int) -> None:
        """Note that the user resumes it."""
        self.note("resumes", partition)
        self._paused.discard(partition)

    def has_all_of(self, partition: int) -> bool:
        """Whether all delivered records of a partition have finished."""
        delivered, offsets = self._delivered.get(partition, {}), self._oracle.offsets[partition]
        if any(each.script.partition == partition for each in self.running.values()):
            # It may still run since an earlier assignment, and not be delivered again yet.
            return False
        return bool(delivered) and all(offsets[offset].number in self.finished_at for offset in delivered)

    def seeks(self, partition: int, to: int) -> None:
        """Note that the user seeks back in a partition."""
        self.note("seeks", partition, to)
        again = {script.number for at, script in self._oracle.offsets[partition].items() if at >= to}
        for number in again:
            if (finished_at := self.finished_at.pop(number, None)) is not None:
                self._again_at[number] = NEVER
                self._sought[number] = finished_at
        self._listed -= again
        self._attempts = {number: count for number, count in self._attempts.items() if number not in again}
        self._delivered[partition], self._unacked[partition] = {}, deque()
        self._moved_at[partition] = self._oracle.now()
        self._walls.pop(partition, None)
        self._positions[partition] = to
        self._oracle.moves_back(partition, to)
        self._since = self._oracle.now()

    # -- obligations -----------------------------------------------------------------------------------------------

    def stopping(self) -> None:
        """Note that a clean stop begins."""
        self.note("stopping")
        self.is_stopping = True
        self._stopping_since, self._stop_sent_at = self._oracle.now(), NEVER

    def stopped(self) -> bool:
        """Check what a clean stop has committed; return whether no fault was in its way."""
        self.note("stopped")
        was_calm = self._was_calm_since(self._stopping_since)
        if was_calm:
            self.check_committed("committed by a clean stop", min(self._stop_sent_at, self._oracle.now()))
        if self.running:
            self.violated("no record is left by a stop", list(self.running))
        return was_calm

    def check_timely(self) -> None:
        """Check that everything is committed in time, if there was no fault since the assignment."""
        due = self._oracle.now() - self._settings.commit_batch_timeout_sec - COMMIT_LATENCY_SEC
        if due < self._held_up_until:
            return
        if not self._is_between and self._since < due and self._was_calm_since(self._since):
            self.check_committed("committed in time", due)

    def check_committed(self, invariant: str, finished_before: float) -> None:
        """Check that everything up to the first unfinished record is committed, except what has just finished."""
        for partition, delivered in self._delivered.items():
            if partition in self._refused:
                continue
            end = self._positions[partition]
            for offset, at in sorted(delivered.items()):
                finished_at = self.finished_at.get(self._oracle.offsets[partition][offset].number, NEVER)
                # A record that has finished before its second delivery counts from that delivery on.
                if max(finished_at, at) >= finished_before:
                    break
                end = offset + 1
            committed = self._oracle.committed[partition]
            # Records listed in metadata count as committed.
            _, _, listed = self._oracle.listed.get(partition, (0, set(), set()))
            numbers = {
                self._oracle.offsets[partition][offset].number for offset in delivered if committed <= offset < end
            }
            if committed < end and not numbers <= listed:
                self.violated(invariant, partition, "is at", committed, "and not at", end)

    # -- records ---------------------------------------------------------------------------------------------------

    def begins(self, script: Script) -> None:
        """Check whether a pass over a record may begin now."""
        number = script.number
        self._oracle.passes += 1
        self._oracle.begun.add(number)
        self.note("begins", number)
        if number in self.running:
            self.violated("no overlap with itself", number)
        if number in self._may_run_again:
            self._may_run_again.remove(number)
            self.finished_at.pop(number, None)
        if number in self.finished_at:
            self.violated("handled once", number, "finished at", self.finished_at[number])
        if number in self._listed:
            self.violated("records listed in metadata are not handled again", number)
        limit = self._settings.concurrency_limit
        if 0 < limit <= len(self.running):
            self.violated("slots", number, "beside", list(self.running))
        if script.partition not in self._positions:
            self.violated("no record begins in a revoked partition", number)
        key = self._oracle.order_key(script)
        for other in self._oracle.by_key.get(key, ()):
            if other.number in self.running:
                self.violated("no overlap of a key", number, other.number)
            if self._positions.get(script.partition, NEVER) <= other.offset < script.offset and not self._has_finished(
                other.number
            ):
                self.violated("order", number, "before", other.number)
        self.running[number] = Pass(script, self._oracle.now())

    def handles(self, number: int, attempt: int) -> "Pass":
        """Note that the handler was called, and check the number of the attempt."""
        a_pass = self.running[number]
        before = self._attempts.get(number, 0)
        if attempt not in {1, before + 1}:
            self.violated("attempts", number, attempt, "after", before)
        self._attempts[number] = a_pass.attempt = attempt
        if attempt == 1 and self._is_behind_a_wall(a_pass.script):
            self.violated("halted", number, "begins behind", self._walls[a_pass.script.partition][0])
        return a_pass

    def _is_behind_a_wall(self, script: Script) -> bool:
        offset, since = self._walls.get(script.partition, (NEVER, NEVER))
        return offset < script.offset and since < self._oracle.now()

    def reports_age(self, partition: int, offset: int, age_sec: float) -> None:
        """Check the reported age of a record that is being handled."""
        a_pass = self.running.get(self._oracle.offsets[partition][offset].number)
        if a_pass is not None and age_sec < self._oracle.now() - a_pass.began - _EXACT_SEC:
            self.violated("the age of a record is reported", a_pass.script.number, age_sec, "since", a_pass.began)

    def ends(self, script: Script, error: BaseException | None) -> None:
        """Note the end of a pass."""
        number = script.number
        a_pass = self.running.pop(number)
        self.note("ends", number, a_pass.attempt, type(error).__name__ if error else "")
        if a_pass.was_cancelled:
            return
        if script.kind != "malformed":
            if a_pass.attempt == 0:
                self.violated("the handler is called", number, repr(error))
                return
            if self._plan.is_slow(script, a_pass.attempt) and not a_pass.was_timed_out:
                self.violated("time limit", number)
        if self._plan.is_done(script, a_pass.attempt):
            self._finish(script)
        elif not self._plan.goes_on(script, a_pass.attempt):
            self._fails(script)

    def _fails(self, script: Script) -> None:
        then = self._plan.policy.then
        if then == "commit":
            self._finish(script)
        elif then == "halt" and script.offset in self._delivered.get(script.partition, {}):
            wall = self._walls.get(script.partition)
            if wall is None or script.offset < wall[0]:
                self._walls[script.partition] = (script.offset, self._oracle.now())

    def _finish(self, script: Script) -> None:
        if not self.is_gone:
            self.note("finishes", script.number)
            self.finished_at.setdefault(script.number, self._oracle.now())
            self._oracle.finished.add(script.number)


class Pass:
    """One pass of FastStream over a record."""

    def __init__(self, script: Script, began: float) -> None:
        self.script = script
        self.began = began
        self.attempt = 0
        self.was_timed_out = False
        self.was_cancelled = False


def number_of(value: bytes | None) -> int:
    """Return which record has this value."""
    return int((value or b"").lstrip(b"?"))
