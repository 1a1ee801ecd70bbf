"""Replaces methods of aiokafka's consumers, to watch assignments, positions and seeks, and to guard commits.

Invariants: I11, I13, I31.
"""

import asyncio
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from aiokafka.errors import CommitFailedError
from aiokafka.util import commit_structure_validate

from faststream_concurrent_kafka._kafka_types import ConsumerRebalanceListener, TopicPartition
from faststream_concurrent_kafka._upstream.consumers import NO_GENERATION, assignment_of


logger = logging.getLogger("faststream_concurrent_kafka")


def wrap_listeners(
    consumer: Any,
    wrap: Callable[[Any], ConsumerRebalanceListener],
    *,
    subscribe: Callable[[Callable[[], None]], None],
    assigned: Callable[[], None],
) -> None:
    """Let `wrap` replace the listener of each `consumer.subscribe`, also at run time.

    `subscribe` is called with the consumer's own `subscribe` to be called. aiokafka calls no listener for a manual
    assignment, so `assigned` is called after each `consumer.assign`.
    """
    original_subscribe, original_assign = consumer.subscribe, getattr(consumer, "assign", None)
    signature = inspect.signature(original_subscribe)

    @functools.wraps(original_subscribe)
    def subscribe_with_listener(*arguments: Any, **keywords: Any) -> None:
        call = signature.bind(*arguments, **keywords)
        listener = call.arguments.get("listener")
        if listener is None or isinstance(listener, ConsumerRebalanceListener):
            call.arguments["listener"] = wrap(listener)
        subscribe(functools.partial(original_subscribe, *call.args, **call.kwargs))

    consumer.subscribe = subscribe_with_listener
    if original_assign is None:
        # A stand-in that can only subscribe.
        return

    @functools.wraps(original_assign)
    def assign(*arguments: Any, **keywords: Any) -> None:
        original_assign(*arguments, **keywords)
        assigned()

    consumer.assign = assign


def wrap_listener(consumer: Any, wrap: Callable[[Any], Any]) -> None:
    """Replace the listener of a consumer that has subscribed already; one with manual assignment has no listener."""
    subscription = consumer._subscription
    if subscription.partitions_auto_assigned():
        subscription._listener = wrap(subscription._listener)


# The methods that seek, and whether aiokafka finds the position later, by a request.
_SEEKS = {"seek": False, "seek_to_committed": False, "seek_to_beginning": True, "seek_to_end": True}


def watch_seeks(consumer: Any, sought: Callable[[TopicPartition, bool], None]) -> None:
    """Call `sought` before each seek, with the partition, and whether aiokafka finds its position later."""

    def wrap(seek: Callable[..., Any], is_found_later: bool) -> Callable[..., Any]:  # noqa: FBT001
        @functools.wraps(seek)
        def watched(*places: Any, **options: Any) -> Any:
            for key in places or consumer.assignment():
                if isinstance(key, TopicPartition):
                    sought(key, is_found_later)
            return seek(*places, **options)

        return watched

    for name, is_found_later in _SEEKS.items():
        if (seek := getattr(consumer, name, None)) is not None:
            setattr(consumer, name, wrap(seek, is_found_later))


def guard_commits(consumer: Any) -> None:
    """Check each request that `consumer.commit` sends, since aiokafka retries inside it.

    A consumer of a group sends no commit while it is not a member: once the group is empty, the broker would accept it,
    and it would move the offsets back that other members have committed meanwhile.

    A cancelled `commit` leaves its request in a task that nothing awaits: its exception is retrieved here, or asyncio
    would log it as never retrieved.
    """
    if getattr(consumer, "_coordinator", None) is not None:
        _guard(consumer, consumer._coordinator)
    else:
        start = consumer.start

        # aiokafka creates the coordinator when the consumer starts.
        async def start_guarded() -> None:
            await start()
            _guard(consumer, consumer._coordinator)

        consumer.start = start_guarded


def _guard(consumer: Any, coordinator: Any) -> None:
    send = coordinator._do_commit_offsets

    async def send_as_member(*arguments: Any) -> None:
        if consumer._subscription.partitions_auto_assigned() and coordinator.generation == NO_GENERATION:
            raise CommitFailedError("the consumer is not a member of its group now")
        await send(*arguments)

    def request(*arguments: Any) -> asyncio.Future[None]:
        sending = asyncio.ensure_future(send_as_member(*arguments))
        sending.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        return sending

    coordinator._do_commit_offsets = request


class Outgoing(NamedTuple):
    """The partitions that a consumer owns until the rebalance that `subscribe` at run time causes."""

    partitions: frozenset[TopicPartition]
    commit: Callable[[Mapping[TopicPartition, Any]], Awaitable[None]]
    """Commits like `consumer.commit`, which refuses all partitions until the next assignment."""


def outgoing(consumer: Any) -> Outgoing | None:
    """Return the partitions that a consumer owns until its next assignment; None if it is not in a group."""
    assignment, coordinator = assignment_of(consumer), getattr(consumer, "_coordinator", None)
    if assignment is None or coordinator is None or not consumer._subscription.partitions_auto_assigned():
        return None

    async def commit(offsets: Mapping[TopicPartition, Any]) -> None:
        await coordinator.commit_offsets(assignment, commit_structure_validate(dict(offsets)))

    return Outgoing(frozenset(assignment.tps), commit)


class PositionWatch(Protocol):
    """Is called when aiokafka finds the position of a partition."""

    def committed(self, key: TopicPartition, offset: int, metadata: str) -> None:
        """Note the committed offset of a partition."""
        ...

    def found(self, key: TopicPartition, position: int) -> None:
        """Note the position that a reset has found."""
        ...

    def sought(self, key: TopicPartition, position: int) -> None:
        """Note the position that the user has sought."""
        ...


def watch_positions(consumer: Any, watch: PositionWatch) -> None:
    """Watch how the positions of the present assignment are found; to be called before anything is fetched."""
    assignment = assignment_of(consumer)
    for key in () if assignment is None else assignment.tps:
        state = assignment.state_value(key)
        if "reset_to" not in vars(state):
            _watch_state(key, state, watch, lambda: assignment_of(consumer) is assignment)


def _watch_state(key: TopicPartition, state: Any, watch: PositionWatch, is_current: Callable[[], bool]) -> None:
    reset_to, seek, update_committed = state.reset_to, state.seek, state.update_committed

    def notify(call: Callable[..., None], *arguments: Any) -> None:
        if is_current():
            try:
                call(key, *arguments)
            except Exception:
                # An exception would end the aiokafka task that runs this, and with it the consumer.
                logger.exception("The position that aiokafka has found for %s[%d] was not taken over", *key)

    def _update_committed(committed: Any) -> None:
        if committed.offset >= 0:
            notify(watch.committed, committed.offset, committed.metadata)
        update_committed(committed)

    def _reset_to(position: int) -> None:
        reset_to(position)
        notify(watch.found, position)

    def _seek(position: int) -> None:
        seek(position)
        notify(watch.sought, position)

    state.update_committed, state.reset_to, state.seek = _update_committed, _reset_to, _seek
