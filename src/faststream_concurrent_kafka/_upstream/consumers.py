"""aiokafka's consumers: reads their private attributes, and does what they have no public method for."""

import inspect
from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition


_DEFAULT_MAX_POLL_INTERVAL_MS = 300_000
_DEFAULT_SESSION_TIMEOUT_MS = 10_000
# The generation of a consumer that is not a member of its group.
NO_GENERATION = -1


def max_poll_interval_sec(consumer: Any) -> float:
    """Return the seconds without a fetch after which a consumer leaves its group."""
    return float(getattr(consumer, "_max_poll_interval_ms", _DEFAULT_MAX_POLL_INTERVAL_MS)) / 1000


def count_as_polled(consumer: Any) -> None:
    """Reset the timer of `max_poll_interval_ms`, as a fetch does."""
    subscription = getattr(consumer, "_subscription", None)
    if subscription is not None:
        with subscription.fetch_context():
            pass


def session_timeout_sec(consumer: Any) -> float:
    """Return the seconds without a heartbeat after which the broker evicts a consumer from its group."""
    return float(getattr(consumer, "_session_timeout_ms", _DEFAULT_SESSION_TIMEOUT_MS)) / 1000


def group_id(consumer: Any) -> Any:
    """Return the id of the consumer's group."""
    return getattr(consumer, "_group_id", None)


def group_instance_id(consumer: Any) -> Any:
    """Return the `group_instance_id` of a static member."""
    return getattr(consumer, "_group_instance_id", None)


def is_member(consumer: Any) -> bool:
    """Whether the consumer takes itself for a member of its group: one that knows of its eviction has no generation."""
    return bool(getattr(getattr(consumer, "_coordinator", None), "generation", None) != NO_GENERATION)


def rebalance_timeout_sec(consumer: Any) -> float:
    """Return the seconds that the group waits for the consumer to join again."""
    timeout_ms = getattr(consumer, "_rebalance_timeout_ms", None)
    return session_timeout_sec(consumer) if timeout_ms is None else float(timeout_ms) / 1000


# Tasks that a consumer needs and never restarts: the attributes that hold them, and what they do.
_TASKS_OF_A_CONSUMER = {
    ("_coordinator", "_coordination_task"): "group coordination",
    ("_fetcher", "_fetch_task"): "fetching",
    ("_client", "_sync_task"): "metadata refresh",
}


def dead_tasks(consumer: Any) -> list[str]:
    """Name the tasks of a consumer that have ended and without which it will not deliver records any more."""
    return [
        what
        for (owner, name), what in _TASKS_OF_A_CONSUMER.items()
        if (task := getattr(getattr(consumer, owner, None), name, None)) is not None and task.done()
    ]


def revive_group_membership(consumer: Any) -> None:
    """Let a consumer join its group again if its heartbeat task has ended with an error.

    aiokafka starts heartbeats only after a join: without one, each fetch would raise that error again for ever.
    """
    coordinator: Any = getattr(consumer, "_coordinator", None)
    for name in ("_heartbeat_task", "_commit_refresh_task"):
        task = getattr(coordinator, name, None)
        if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
            coordinator.request_rejoin()


def missing_topics(consumer: Any) -> list[str]:
    """Return the subscribed topics that had no partitions in the consumer's last metadata."""
    if not isinstance(consumer, AIOKafkaConsumer):
        return []
    return sorted(topic for topic in consumer.subscription() or () if not consumer.partitions_for_topic(topic))


def ask_for_topics(consumer: Any) -> None:
    """Let a consumer request metadata now; by itself it does so every `metadata_max_age_ms` (five minutes)."""
    consumer._client.force_metadata_update()


class FetchState(NamedTuple):
    """How far a consumer has come in a partition that is not paused."""

    position: int | None
    """The offset of the next record; None while it is unknown."""
    end: int | None
    """The end of what can be delivered of the log, as of the last answer."""
    answered_at: float | None
    """When the broker last answered a fetch; only compared for equality."""


def fetch_states(consumer: Any) -> dict[TopicPartition, FetchState]:
    """Return how far the consumer has come in each partition that is assigned and not paused."""
    assignment = assignment_of(consumer)
    if assignment is None:
        return {}
    states = {key: assignment.state_value(key) for key in assignment.tps}
    return {
        key: FetchState(
            state.position if state.has_valid_position else None,
            # -1: not asked for, without isolation_level="read_committed".
            state.lso if state.lso is not None and state.lso >= 0 else state.highwater,
            state.timestamp,
        )
        for key, state in states.items()
        if not state.paused
    }


def assigned(consumer: Any) -> Collection[TopicPartition] | None:
    """Return the partitions that a consumer owns now; None if it can't tell, as the stand-in of a test may not."""
    assignment = getattr(consumer, "assignment", None)
    if assignment is None or inspect.iscoroutinefunction(assignment):
        return None
    partitions = assignment()
    if not isinstance(partitions, AbstractSet):
        return None
    return partitions


def exists(consumer: Any, partition: TopicPartition) -> bool:
    """Whether the partition exists, by the consumer's last metadata; True for a consumer that is not aiokafka's."""
    if not isinstance(consumer, AIOKafkaConsumer):
        return True
    return partition.partition in (consumer.partitions_for_topic(partition.topic) or ())


def assignment_of(consumer: Any) -> Any:
    subscription = getattr(getattr(consumer, "_subscription", None), "subscription", None)
    return getattr(subscription, "assignment", None)


def positions(consumer: Any) -> dict[TopicPartition, int]:
    """Return the known positions of the assigned partitions."""
    assignment = assignment_of(consumer)
    states = {} if assignment is None else {key: assignment.state_value(key) for key in assignment.tps}
    return {key: state.position for key, state in states.items() if state.has_valid_position}


def lacks_position(consumer: Any) -> bool:
    """Whether aiokafka is still looking for the position of an assigned partition."""
    return isinstance(consumer, AIOKafkaConsumer) and len(positions(consumer)) < len(consumer.assignment())


async def committed_offsets(consumer: Any, partitions: Iterable[TopicPartition]) -> Any:
    """Return, by partition, the `OffsetAndMetadata` that is committed; `consumer.committed` leaves the metadata out.

    Retries for ever what can be retried.
    """
    coordinator = getattr(consumer, "_coordinator", None)
    return {} if coordinator is None else await coordinator.fetch_committed_offsets(list(partitions))
