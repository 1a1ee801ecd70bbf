"""Why the records of one subscriber may not be arriving, or not be finished."""

import logging
from typing import Any

from aiokafka import TopicPartition
from faststream.kafka.subscriber.usecase import LogicSubscriber

from faststream_concurrent_kafka import private_parts
from faststream_concurrent_kafka.commit_task import KafkaCommitTask
from faststream_concurrent_kafka.stalls import StallWatch


logger = logging.getLogger(__package__)


class SubscriberHealth:
    """What has gone wrong with one subscriber, for as long as it lasts."""

    def __init__(self, subscriber: LogicSubscriber[Any], name: str, *, stall_timeout_sec: float) -> None:
        self._subscriber = subscriber
        self._name = name
        self._stalls: StallWatch[TopicPartition] = StallWatch(stall_timeout_sec)
        # Why a partition stands still, by the record that it stopped at; over when the ledger is.
        self._halted: dict[KafkaCommitTask, str] = {}

    def note_halt(self, commit: KafkaCommitTask, reason: str) -> None:
        """Note that a partition stands still at a record."""
        self._halted[commit] = f"{commit!r} has halted its partition: {reason}. A restart tries it again."
        logger.error("%s", self._halted[commit])

    def look_for_stalls(self, now: float, *, is_busy: bool) -> None:
        """Note how far the consumer has come; while `is_busy`, it takes nothing on purpose."""
        self._stalls.look(private_parts.fetch_states(self._subscriber.consumer), now, is_busy=is_busy)

    def problems(self, now: float) -> list[str]:
        """Say what is wrong with a subscriber that is meant to run; empty when all is well."""
        subscriber = self._subscriber
        if subscriber.calls and all(task.done() for task in subscriber.tasks):
            return [f"the consume loop of {self._name} has ended"]
        if private_parts.group_coordination_has_died(subscriber.consumer):
            return [f"the group coordination of {self._name} has died"]
        self._halted = {commit: reason for commit, reason in self._halted.items() if not commit.ledger.closed}
        stalled = (
            f"{key.topic}[{key.partition}] has got nothing for {age_sec:.0f} s: {reason}"
            for key, age_sec, reason in self._stalls.stalled(now)
        )
        return [*self._halted.values(), *stalled]
