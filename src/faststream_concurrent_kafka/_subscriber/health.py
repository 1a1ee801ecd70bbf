"""Why records of one subscriber may not arrive, or not be finished (I30)."""

import dataclasses
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from aiokafka import TopicPartition
from faststream.kafka.subscriber.usecase import LogicSubscriber

from faststream_concurrent_kafka._runtime.lasting import Lasting
from faststream_concurrent_kafka._subscriber.stalls import StallWatch
from faststream_concurrent_kafka._upstream import consumers


logger = logging.getLogger("faststream_concurrent_kafka")

# FastStream fetches again five seconds after an error.
_LONGEST_BETWEEN_ERRORS_SEC = 15.0
_ASK_FOR_TOPICS_SEC = 5.0
_LONGEST_BETWEEN_QUESTIONS_SEC = 30.0
# So many evictions within so many session timeouts are a lasting state, and no accident.
_EVICTIONS_IN_A_ROW = 3
_SESSIONS_IN_A_ROW = 6


@dataclasses.dataclass(slots=True)
class _Trouble:
    """A problem that lasts."""

    since: float
    last: float
    what: str


class SubscriberHealth:
    """The problems of one subscriber, for as long as they last."""

    def __init__(self, subscriber: LogicSubscriber[Any], name: str, *, stall_timeout_sec: float) -> None:
        self._subscriber = subscriber
        self._name = name
        self._stalls: StallWatch[TopicPartition] = StallWatch(stall_timeout_sec)
        self._stall_timeout_sec = stall_timeout_sec
        self._fetching: _Trouble | None = None
        self._missing: _Trouble | None = None
        self._lost: _Trouble | None = None
        self._evictions: deque[float] = deque(maxlen=_EVICTIONS_IN_A_ROW)
        # For each partition whose window is full, the offset of the record behind which it is.
        self._blocked: Lasting[TopicPartition, int] = Lasting(stall_timeout_sec)

    def note_fetch_error(self, error: Exception, now: float) -> None:
        """Note that a fetch has failed; FastStream fetches again soon."""
        if self._fetching is None or now - self._fetching.last > _LONGEST_BETWEEN_ERRORS_SEC:
            # Once per series: FastStream logs each failure, if it has a logger.
            logger.warning("%s can't fetch, and goes on trying: %r", self._name, error)
            self._fetching = _Trouble(now, now, "")
        self._fetching.last, self._fetching.what = now, repr(error)
        consumers.revive_group_membership(self._subscriber.consumer)

    def note_eviction(self, now: float) -> None:
        """Note that the consumer was evicted from its group; it joins again by itself."""
        self._evictions.append(now)

    def sample(self, now: float, *, is_busy: bool, blocked: Mapping[TopicPartition, int]) -> None:
        """Take a sample of the consumer's progress; while `is_busy`, it does not fetch on purpose.

        `blocked` has, for each partition whose window is full, the offset of the record behind which it is.
        """
        consumer = self._subscriber.consumer
        self._blocked.sample(blocked, now)
        self._stalls.sample(consumers.fetch_states(consumer), now, is_busy=is_busy)
        missing = ", ".join(consumers.missing_topics(consumer))
        if not missing:
            self._missing = None
        elif self._missing is None or self._missing.what != missing:
            self._missing = _Trouble(now, now, missing)
        elif now - self._missing.last >= _ASK_FOR_TOPICS_SEC:
            self._missing.last = now
            consumers.ask_for_topics(consumer)
        self._find_leaders(consumer, now)

    def _find_leaders(self, consumer: Any, now: float) -> None:
        """Request metadata, less and less often, while the position of a partition is not found.

        aiokafka asks the last known leader for the position every 100 ms, even if that broker leads no more.
        """
        if not consumers.lacks_position(consumer):
            self._lost = None
        elif self._lost is None:
            self._lost = _Trouble(now, now, "")
        elif now - self._lost.last >= min(self._lost.last - self._lost.since, _LONGEST_BETWEEN_QUESTIONS_SEC):
            self._lost.last = now
            consumers.ask_for_topics(consumer)

    def deaths(self) -> list[str]:
        """Name the tasks of a running subscriber that have ended and that only a restart of the process brings back."""
        subscriber = self._subscriber
        if subscriber.calls and all(task.done() for task in list(subscriber.tasks)):
            return [f"the consume loop of {self._name} has ended"]
        return [f"the {what} of {self._name} has died" for what in consumers.dead_tasks(subscriber.consumer)]

    def problems(self, now: float) -> list[str]:
        """Say what is wrong with a running subscriber; empty when there is no problem."""
        return self.deaths() or [*self._evicted(now), *self._silences(now)]

    def blocked(self, now: float) -> list[tuple[TopicPartition, int, float]]:
        """Return partition, offset and seconds where one record has kept a window full for too long."""
        return self._blocked.for_long(now)

    def _evicted(self, now: float) -> Iterator[str]:
        consumer, evictions = self._subscriber.consumer, self._evictions
        limit_sec = _SESSIONS_IN_A_ROW * consumers.session_timeout_sec(consumer)
        if len(evictions) == _EVICTIONS_IN_A_ROW and now - evictions[0] < limit_sec:
            instance = consumers.group_instance_id(consumer)
            is_alone = "its heartbeats come too late"
            why = is_alone if instance is None else f"is there another group_instance_id={instance}?"
            within_sec = evictions[-1] - evictions[0]
            yield f"{self._name} was evicted from its group {len(evictions)} times within {within_sec:.0f} s: {why}"

    def _silences(self, now: float) -> Iterator[str]:
        for key, age_sec, reason in self._stalls.stalled(now):
            yield f"{key.topic}[{key.partition}] has got nothing for {age_sec:.0f} s: {reason}"
        limit_sec = self._stall_timeout_sec
        if (missing := self._missing) is not None and 0 < limit_sec <= now - missing.since:
            yield f"there has been no topic {missing.what} for {now - missing.since:.0f} s"
        fetching = self._fetching
        if fetching is None or now - fetching.last > _LONGEST_BETWEEN_ERRORS_SEC:
            return
        if 0 < limit_sec <= now - fetching.since:
            yield f"{self._name} has not been able to fetch for {now - fetching.since:.0f} s: {fetching.what}"
