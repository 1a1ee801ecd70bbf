"""The world of a seed: members, a broker and a clock, and the events of the plan."""

import asyncio
import contextlib
import dataclasses
import logging
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    RebalanceInProgressError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
)

from faststream_concurrent_kafka import KafkaConcurrentHandler
from tests.simulation.kafka import GROUP, TOPIC, SimulatedKafka, SimulatedProducer
from tests.simulation.loops import Clock, ProcessLoop, Scheduler, dispose
from tests.simulation.member import Member
from tests.simulation.oracle import Oracle
from tests.simulation.plan import SLOTS, Event, Plan, Script


# Long enough for every retry and dead letter of a plan.
PATIENCE_SEC = 300.0
# How long a stopping process may take to leave its group.
LINGERS_SEC = 15.0
_FAILURES = (GroupCoordinatorNotAvailableError, RequestTimedOutError)
_REFUSALS = (TopicAuthorizationFailedError, UnknownMemberIdError, RebalanceInProgressError)
_PARTLY = (TopicAuthorizationFailedError, UnknownTopicOrPartitionError)
# The first number of records that replace lost ones.
_ANOTHER = 1000
_library = logging.getLogger("faststream_concurrent_kafka")


class World:
    """Plays one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clock = Clock()
        self.oracle = Oracle(plan, lambda: self.clock.now)
        self._rng = random.Random(plan.seed + 1)  # noqa: S311 - a simulation, no secret
        self._kafka = SimulatedKafka(plan.partitions, self._rng, lambda: self._running.oracle)
        self._scheduler = Scheduler(self.clock, self._rng, self._as_process_of, self.oracle.check)
        self._slots: list[Member | None] = [None] * SLOTS
        self._members: dict[ProcessLoop, Member] = {}
        self._now_running: Member | None = None
        self._timers: list[tuple[float, Any]] = []
        self._holds: list[contextlib.ExitStack] = []
        self._waiting = sorted(plan.scripts, key=lambda script: (script.at, script.partition, script.offset))

    # -- the scheduler's hooks -------------------------------------------------------------------------------------

    @contextmanager
    def _as_process_of(self, loop: ProcessLoop) -> Generator[None]:
        """Switch the library's singleton, its log and its producers to those of one process."""
        member = self._now_running = self._members[loop]
        KafkaConcurrentHandler._instance = member.singleton
        try:
            yield
        finally:
            member.singleton, KafkaConcurrentHandler._instance = KafkaConcurrentHandler._instance, None
            self._now_running = None

    @property
    def _running(self) -> Member:
        if self._now_running is None:
            raise RuntimeError("no process is running")
        return self._now_running

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a log line to its process."""
        if self._now_running is not None:
            self._now_running.logs(record)

    def make_producer(self, _subscriber: Any) -> SimulatedProducer:
        """Replace `subscribers.make_producer`."""
        return SimulatedProducer(self._kafka, self._running.oracle)

    # -- the play --------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Play the plan to its end; raises ViolationError."""
        for event in self.plan.events:
            self._go_on_to(event.at)
            for _ in range(event.after_turns):
                if not self._scheduler.turn():
                    break
            self._apply(event)
            self._check_timely()
        self._go_on_to(self.plan.ends_at)
        self._calm_down()
        self._until(self._is_drained, "everything is committed in the end")
        for script in self.plan.epilogue:
            self._append(script)
        self.oracle.has_epilogue = True
        self._until(self._is_drained, "everything is committed in the end")
        self.oracle.check_all_handled()
        self._until(lambda: not any(self._leftovers()), "no acknowledged record is remembered", self._leftovers)
        self._stop_all()

    def _go_on_to(self, moment: float) -> None:
        while True:
            due = min((at for at, _ in self._timers), default=moment)
            if self._waiting and self._waiting[0].at <= min(due, moment):
                self._scheduler.run_to(self._waiting[0].at)
                self._append(self._waiting.pop(0))
            elif due <= moment and self._timers:
                self._scheduler.run_to(due)
                at, action = min(self._timers, key=lambda timer: timer[0])
                self._timers.remove((at, action))
                action()
            else:
                self._scheduler.run_to(moment)
                self._reap()
                return

    def _append(self, script: Script) -> None:
        headers = [("topic_group", b"shipping")] if script.kind == "of another group" else []
        # Later than that of the record that had its offset before.
        timestamp = int(self.clock.now * 1000) + script.number
        more: Any = {"key": script.key, "headers": headers, "offset": script.offset, "timestamp": timestamp}
        self._kafka.append(TOPIC, script.partition, script.value, **more)

    def _leftovers(self) -> list[list[str]]:
        return [member.leftovers() for member in self._alive()]

    def _until(self, condition: Any, invariant: str, found: Any = str) -> None:
        deadline = self.clock.now + PATIENCE_SEC
        while not condition():
            if self.clock.now >= deadline:
                for member in self._alive():
                    member.oracle.note("is stuck", repr(member.handler and list(member.handler.records)))
                self.oracle.violated("world", invariant, self.oracle.committed, self.oracle.missing(), found())
                self.oracle.check()
            self._go_on_to(self.clock.now + 0.5)
            for member in self._alive():
                member.check_health()
            self.oracle.check()

    def _alive(self) -> list[Member]:
        return [member for member in self._slots if member is not None]

    def _check_timely(self) -> None:
        for member in self._alive():
            member.oracle.check_timely()
            member.check_health()
        self.oracle.check()

    # -- the end ---------------------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        """End all faults, and make sure that at least one process can commit."""
        self.oracle.note("world", "calms down")
        self._kafka.fail_commits(ZeroDivisionError(), 0)
        for hold in self._holds:
            hold.close()
        self._kafka.refuse_no_more()
        self._kafka.silent_until = self._kafka.publishing_fails_until = 0.0
        for member in self._alive():
            if member.is_running and member.oracle.is_broken:
                # As a liveness probe would do.
                member.stop(by_broker=True)
        self._until(lambda: all(member.is_running for member in self._alive()), "starts and stops end")
        if not self._alive():
            self._start(0)
            self._until(lambda: all(member.is_running for member in self._alive()), "a process starts")

    def _is_drained(self) -> bool:
        if not self._alive():
            # A handler has stopped the last one.
            self._start(0)
        return not self.oracle.missing()

    def _stop_all(self) -> None:
        for member in self._alive():
            if member.is_running:
                member.stop(by_broker=True)
                self._go_on_to(self.clock.now + 0.1)
        self._until(lambda: not self._alive(), "every process ends")
        self.oracle.check()

    def _reap(self) -> None:
        for slot, member in enumerate(self._slots):
            if member is None or not member.has_ended:
                continue
            left = asyncio.all_tasks(member.loop)
            if not left:
                member.check_nothing_left()
                self._bury(slot, member)
            elif self.clock.now > member.ended_at + LINGERS_SEC:
                if member.was_calm:
                    member.oracle.violated("no task is left", sorted(task.get_name() for task in left))
                self._crash(slot)

    def dispose(self) -> None:
        """End the tasks of crashed processes; their events do not count."""
        for member in self._members.values():
            member.oracle.is_gone = True
        # A member that leaves the group makes the others join again, also stopping ones.
        while any(map(asyncio.all_tasks, self._members)):
            for loop, member in self._members.items():
                with self._as_process_of(loop):
                    if member.handler is not None:
                        member.handler.discard()
                    dispose(loop, self.clock)
        for loop in self._members:
            loop.close()

    # -- events ----------------------------------------------------------------------------------------------------

    def _apply(self, event: Event) -> None:
        self.oracle.note("world", event.what, event.slot, event.for_sec, event.times)
        member = self._slots[event.slot]
        running = member if member is not None and member.is_running else None
        match event.what:
            case "start" if member is None:
                self._start(event.slot)
            case "stop" if running is not None:
                running.stop(by_broker=event.times > 1)
            case "crash" if member is not None:
                self._crash(event.slot)
            case "lose membership" if running is not None:
                self._lose_membership(running)
            case "pause" if running is not None:
                self._in_process(running, lambda: self._pause(running, event))
            case "seek back" if running is not None:
                self._seek_back(running, event.place, 60)
            case "subscribe" if running is not None:
                self._in_process(running, running.subscribe)
            case _:
                self._apply_to_broker(event)

    def _apply_to_broker(self, event: Event) -> None:
        kafka, group, until = self._kafka, self._kafka.groups[GROUP], self.clock.now + event.for_sec
        match event.what:
            case "rebalance":
                group.rebalance()
            case "rebalance twice":
                group.rebalance()
                self._timers.append((self.clock.now + event.for_sec / 4, group.rebalance))
            case "commits fail":
                kafka.fail_commits(_FAILURES[event.times % 2](), event.times)
            case "commits are refused":
                kafka.fail_commits(_REFUSALS[event.slot](), event.times)
            case "commits break":
                kafka.fail_commits(ZeroDivisionError("a fault of ours"))
            case "commits wait":
                hold = contextlib.ExitStack()
                hold.enter_context(kafka.hold_commits())
                self._timers.append((until, hold.close))
                self._holds.append(hold)
            case "broker is silent":
                kafka.silent_until = until
            case "publishing fails":
                kafka.publishing_fails_until = until
            case "refuse a partition":
                kafka.refuse(event.place % self.plan.partitions, until, _PARTLY[event.times % 2]())
            case "cut the log":
                for slot in range(SLOTS):
                    self._crash(slot)
                self._cut(event.place)

    def _in_process(self, member: Member, action: Callable[[], object]) -> None:
        """Run a function as code of a process."""
        member.loop.call_soon(action)

    def _pause(self, member: Member, event: Event) -> None:
        if (resume := member.pause(event.place)) is not None:
            member.loop.call_later(event.for_sec, resume)

    def _seek_back(self, member: Member, place: int, attempts: int) -> None:
        def seek() -> None:
            if not member.seek_back(place) and attempts and member.is_running:
                member.loop.call_later(0.1, self._seek_back, member, place, attempts - 1)

        self._in_process(member, seek)

    def _cut(self, place: int) -> None:
        """Replace the records of a partition from an uncommitted offset on."""
        partition = place % self.plan.partitions
        log = self._kafka.logs[TopicPartition(TOPIC, partition)]
        committed = self.oracle.committed[partition]
        uncommitted = [record for record in log if record.offset >= committed]
        if not uncommitted:
            return
        # The next owner's first record stays, which makes the replacement hard to detect.
        cut = uncommitted[self._rng.choice([0, 1, 1, 1, 2, 3]) % len(uncommitted)].offset
        gone = [self.oracle.offsets[partition][record.offset] for record in log if record.offset >= cut]
        del log[-len(gone) :]
        self.oracle.note("world", "has another tail", partition, cut)
        others = [dataclasses.replace(script, number=script.number + _ANOTHER) for script in gone]
        self.oracle.replace(others)
        for script in others:
            self._append(script)

    def _start(self, slot: int) -> None:
        member = Member(self.plan, self.oracle, self._kafka, self.clock, f"{slot}.{len(self._members)}")
        member.oracle.note("starts")
        self._slots[slot] = member
        self._members[member.loop] = member
        self._scheduler.loops.append(member.loop)

    def _crash(self, slot: int) -> None:
        member = self._slots[slot]
        if member is None:
            return
        member.oracle.check_timely()
        self._bury(slot, member)
        member.crash()
        consumer = member.consumer
        if consumer is not None:
            # Its earlier requests may still arrive, but no new ones; the broker waits for its heartbeats in vain.
            self._timers.append((self.clock.now + self.plan.session_sec, consumer.lose_membership))

    def _bury(self, slot: int, member: Member) -> None:
        self._slots[slot] = None
        self._scheduler.loops.remove(member.loop)

    def _lose_membership(self, member: Member) -> None:
        member.oracle.has_lost_membership = True
        member.oracle.note("loses its membership")
        if member.consumer is not None:
            member.consumer.lose_membership()
