"""The handler against an oracle: random records, orders, policies and ends of attempts, in virtual time.

Invariants: I5, I25, I26.
"""

import asyncio
import dataclasses

from faststream.exceptions import AckMessage, NackMessage, RejectMessage, SubscriberNotFound
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from faststream_concurrent_kafka import DeadLetter, FailurePolicy
from faststream_concurrent_kafka._record.state import BACKOFF
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.world import Source, World


ENDS = {
    "ok": None,
    "acked": AckMessage,
    "rejected": RejectMessage,
    "connection": ConnectionError,
    "timeout": TimeoutError,
    "cancelled": asyncio.CancelledError,
    "permission": PermissionError,
    "malformed": SubscriberNotFound,
    "nack": NackMessage,
}
GOOD = {"ok", "acked", "rejected"}
INSTANT = -1.0  # the handler does not suspend
ATTEMPTS = st.tuples(
    st.sampled_from(["ok", "connection", "connection", "nack", "permission", *ENDS]),
    st.sampled_from([INSTANT, 0, 0.5, 1, 5]),
)


@dataclasses.dataclass(frozen=True)
class Script:
    """A record: its delay after the one before, its place, and the ends of its attempts; the next one succeeds."""

    after_sec: float
    partition: int
    key: bytes | None
    attempts: list[tuple[str, float]]

    def end(self, attempt):
        return self.attempts[attempt - 1] if attempt <= len(self.attempts) else ("ok", 0)


SCRIPTS = st.lists(
    st.builds(
        Script,
        after_sec=st.sampled_from([0, 0, 0, 0.25, 3]),
        partition=st.sampled_from([0, 0, 1]),
        key=st.sampled_from([b"a", b"a", b"b", b"", None]),
        attempts=st.lists(ATTEMPTS, max_size=4),
    ),
    min_size=1,
    max_size=14,
)


def not_the_second(_error, attempt):
    return attempt != 2


POLICIES = st.builds(
    lambda backoffs, **others: FailurePolicy(first_backoff_sec=backoffs[0], max_backoff_sec=backoffs[1], **others),
    backoffs=st.sampled_from([(0, 0.1), (0.1, 0.1), (0, 30), (0.5, 30), (8, 30)]),
    max_attempts=st.integers(0, 4),
    retry_on=st.sampled_from([Exception, (ConnectionError, PermissionError), not_the_second]),
    never_retry=st.sampled_from([(), PermissionError]),
    then=st.sampled_from(["commit", "halt", DeadLetter("dead")]),
)


def oracle(policy, script):
    """Return the number of attempts at a record, and its end."""
    attempt = 0
    while True:
        attempt += 1
        end, _ = script.end(attempt)
        if end in GOOD:
            return attempt, "done"
        is_last = 0 < policy.max_attempts <= attempt
        if end == "nack":
            again = policy.max_attempts == 1 or not is_last
        else:
            wanted = {
                Exception: end != "cancelled",
                (ConnectionError, PermissionError): end in {"connection", "permission"},
                not_the_second: attempt != 2,
            }[policy.retry_on]
            again = not is_last and wanted and not (end == "permission" and policy.never_retry)
        if not again:
            return attempt, {"commit": "done", "halt": "halted"}.get(policy.then, "dead letter")


class JournalingSource(Source):
    """Writes the calls of its methods to the journal of the handlers."""

    def __init__(self, settings, journal):
        super().__init__(settings)
        self.journal = journal
        self.publishing = set()

    @override
    def halt(self, record, reason, error=None):
        super().halt(record, reason, error)
        self.journal.append(("halted", record.raw.partition, record.raw.offset))

    @override
    async def dead_letter(self, record, error):
        place = (record.raw.partition, record.raw.offset)
        self.publishing.add(place)
        await asyncio.sleep(0.3)
        self.publishing.discard(place)
        self.journal.append(("dead letter", *place))


class Model:
    """Plays the scripts, and checks invariants at every moment and the outcomes at the end."""

    def __init__(self, options, policy, scripts):
        self.world = World(on_failure=policy, **options)
        self.journal = []
        self.source = JournalingSource(self.world.handler.settings, self.journal)
        self.source.share = self.world.source.share
        self.world.source = self.source
        self.world.handler.sources[:] = [self.source]
        self.limit = options["concurrency_limit"] or len(scripts) + 1
        self.ordering = options["ordering"]
        self.policy, self.scripts = policy, scripts
        self.running = set()
        self.most_running = self.overlaps = 0
        self.delivered = {}

    def deliver(self, script):
        place = (script.partition, self.world.offsets[script.partition])

        async def process(_raw):
            attempt = record.attempt
            end, duration_sec = script.end(attempt)
            # Noted, not asserted: an AssertionError would be a failure of the record.
            self.overlaps += place in self.running
            self.running.add(place)
            self.most_running = max(self.most_running, len(self.running))
            self.journal.append(("begins", *place, attempt))
            if duration_sec != INSTANT:
                await asyncio.sleep(duration_sec)
            self.running.discard(place)
            self.journal.append(("ends", *place, attempt))
            error = ENDS[end]
            if error is not None:
                raise error

        record = self.world.deliver(process, partition=script.partition, key=script.key)
        self.delivered[place] = (script, record)

    def is_blocked(self, record, records):
        """Whether an earlier unfinished record shares a key with it."""
        place = (record.raw.partition, record.raw.offset)
        return any(
            (other.raw.partition, other.raw.offset) < place and self.share_a_lane(other, record) for other in records
        )

    def share_a_lane(self, one, other):
        if self.ordering == "unordered" or one.raw.partition != other.raw.partition:
            return False
        return self.ordering == "partition" or (one.raw.key is not None and one.raw.key == other.raw.key)

    def look(self):
        """Check what must hold whenever no task is ready."""
        in_flight = self.world.handler.records
        records = set(in_flight)
        sleeping = {record for record in records if record.state is BACKOFF}
        running = {record for record in records if (record.raw.partition, record.raw.offset) in self.running}
        publishing = {
            record for record in records if (record.raw.partition, record.raw.offset) in self.source.publishing
        }
        assert {record for record in records if not record.is_idle} == running
        assert in_flight.retrying == len(sleeping)
        assert in_flight.waiting == len(records) - len(running)
        assert self.source.in_flight == len(records)
        blocked = {record for record in records if self.is_blocked(record, records)}
        ready = records - blocked - running - sleeping - publishing
        assert not ready or len(running) == self.limit, "a slot is free, and a record that might have it waits"
        assert self.world.handler.slots.reserved == len(running) + len(ready)

    async def play(self):
        watching = asyncio.create_task(self.watch())
        try:
            for script in self.scripts:
                if script.after_sec:
                    await asyncio.sleep(script.after_sec)
                self.deliver(script)
            await self.world.until(lambda: len(self.world.handler.records) == 0 or watching.done(), within_sec=10_000)
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        if not watching.cancelled():
            await watching
        await self.check_the_end()
        await self.check_nothing_is_left()

    async def watch(self):
        while True:
            # At moments between those of the scripts.
            await asyncio.sleep(0.0917)
            self.look()

    async def check_the_end(self):
        assert self.overlaps == 0
        assert self.most_running <= self.limit
        halted = {}
        for kind, partition, offset, *_ in self.journal:
            if kind == "halted":
                halted[partition] = min(offset, halted.get(partition, offset))
        for place, (script, _) in self.delivered.items():
            made = [entry[3] for entry in self.journal if entry[0] == "begins" and entry[1:3] == place]
            attempts, end = oracle(self.policy, script)
            if made or place[0] not in halted or place[1] <= halted[place[0]]:
                assert made == list(range(1, attempts + 1))
                assert (("halted", *place) in self.journal) == (end == "halted")
                assert self.journal.count(("dead letter", *place)) == (end == "dead letter")
        for partition, delivered in self.world.offsets.items():
            assert await self.world.committed(partition) == halted.get(partition, delivered)
        self.check_nothing_begins_behind_a_halt()
        self.check_lanes()

    def check_nothing_begins_behind_a_halt(self):
        for number, (kind, partition, offset, *_) in enumerate(self.journal):
            if kind == "halted":
                later = [entry for entry in self.journal[number:] if entry[0] == "begins" and entry[3] == 1]
                assert not [entry for entry in later if entry[1] == partition and entry[2] > offset]

    def check_lanes(self):
        """Check that all attempts of a record, and its dead letter, end before the next record of its key begins."""
        spans = {}
        for number, (_, *place) in enumerate(self.journal):
            first, _ = spans.get(tuple(place[:2]), (number, number))
            spans[tuple(place[:2])] = (first, number)
        for earlier, (_, end) in spans.items():
            for later, (begin, _) in spans.items():
                if earlier < later and self.share_a_lane(self.delivered[earlier][1], self.delivered[later][1]):
                    assert end < begin

    async def check_nothing_is_left(self):
        """Check that no reservation, slot or order is kept: one more record of each kind begins at once."""
        assert self.world.handler.slots.reserved == 0
        assert self.source.in_flight == 0
        halted = {partition for kind, partition, *_ in self.journal if kind == "halted"}
        for partition, key in {(script.partition, script.key) for script in self.scripts}:
            if partition not in halted:
                self.deliver(Script(0, partition, key, []))
                await asyncio.sleep(0.01)
                assert len(self.world.handler.records) == 0


OPTIONS = st.fixed_dictionaries(
    {
        "ordering": st.sampled_from(["unordered", "key", "partition"]),
        "concurrency_limit": st.sampled_from([0, 1, 2, 4]),
    },
)


@settings(max_examples=3 * settings().max_examples)
@given(options=OPTIONS, policy=POLICIES, scripts=SCRIPTS)
def test_every_record_comes_to_the_end_that_its_script_and_policy_say(options, policy, scripts):
    """Order and limit hold, no slot is idle, everything is committed up to a halt, and nothing is left."""

    async def main() -> None:
        model = Model(options, policy, scripts)
        try:
            await model.play()
        finally:
            await model.world.handler.stop()

    run_virtual(main())
