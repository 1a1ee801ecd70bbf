"""What FastStream and aiokafka keep private.

`tests/unit/test_upstream.py` fails when one of the names used here changes.
"""

import asyncio
import functools
import itertools
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import CellType, FrameType
from typing import Any, NamedTuple, Protocol, cast

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError
from aiokafka.util import commit_structure_validate
from anyio import CapacityLimiter
from faststream.kafka.parser import AioKafkaBatchParser
from faststream.kafka.subscriber.usecase import LogicSubscriber
from typing_extensions import override

from faststream_concurrent_kafka._runtime.stack import frames_of


logger = logging.getLogger("faststream_concurrent_kafka")

# anyio's, by which a synchronous handler or dependency is run.
_THREADED = "run_sync_in_worker_thread"
# A pass over a record, in the task that makes it.
_PASS = LogicSubscriber.process_message.__code__
# Where FastStream parses a record and filters it, decodes it, and logs how its pass has ended.
_PARSES = ("faststream._internal.endpoint.subscriber.call_item", "is_suitable")
_DECODES = ("faststream.message.message", "decode")
_LOGS = ("faststream.middlewares.logging", "__aexit__")
# That of a consumer which has not joined its group, or was thrown out of it.
_NO_GENERATION = -1
_DEFAULT_MAX_POLL_INTERVAL_MS = 300_000
_DEFAULT_SESSION_TIMEOUT_MS = 10_000
# One attempt to publish: long enough for a broker that is busy, short enough to say that something is wrong.
_PUBLISH_TIMEOUT_MS = 10_000
# What is too large is for the broker to decide: it can be changed there without a restart of this process.
_ANY_SIZE = 2**31 - 1


def is_real(subscriber: LogicSubscriber[Any]) -> bool:
    """Whether the subscriber consumes from a broker; not so under TestKafkaBroker, and before it is started."""
    return hasattr(subscriber.consumer, "getone") or bool(getattr(subscriber, "consumer_subgroup", None))


def middlewares_of(subscriber: LogicSubscriber[Any]) -> Iterator[Any]:
    """Yield what makes the middlewares of a subscriber, its broker's first; classes out of their partials."""
    for entry in subscriber._broker_middlewares:
        yield entry.func if isinstance(entry, functools.partial) else entry


def around_innermost(
    call: Callable[[Any], Awaitable[Any]],
    wrap: Callable[[Callable[[Any], Awaitable[Any]]], Callable[[Any], Awaitable[Any]]],
) -> Callable[[Any], Awaitable[Any]]:
    """Wrap what the chain of middlewares `call` ends in: the handler. What is no such chain is wrapped as a whole."""
    if isinstance(call, functools.partial) and len(call.args) == 1 and not call.keywords:
        return functools.partial(call.func, around_innermost(call.args[0], wrap))
    return wrap(call)


def is_in_thread(task: asyncio.Task[Any]) -> bool:
    """Whether a task waits for a function that FastStream runs in a thread: cancelling it would not end that."""
    frames = frames_of(task)
    return bool(frames) and frames[-1].f_code.co_name == _THREADED


class InHand(NamedTuple):
    """What FastStream's own loop over a subscriber's records is in the middle of."""

    loop: asyncio.Task[Any]
    raw: Any
    message: Any
    """None until it was parsed."""


def in_hand(subscriber: LogicSubscriber[Any]) -> InHand | None:
    """Return the record or batch that FastStream's own loop is making a pass over, if it is."""
    for task in subscriber.tasks:
        for frame in frames_of(task):
            if frame.f_code is _PASS:
                names = frame.f_locals
                return InHand(task, names["msg"], names.get("message"))
    return None


def replace_loop(subscriber: LogicSubscriber[Any], loop: asyncio.Task[Any]) -> None:
    """Start another of FastStream's loops in place of this one, which gets `ConsumerStoppedError` where it goes on.

    FastStream forgets it: its supervisor would start it once more if a handler ended it by an exception.
    """
    subscriber.tasks.remove(loop)
    subscriber.add_task(subscriber._run_consume_loop, (subscriber.consumer,))


async def narrow_batch(subscriber: LogicSubscriber[Any], message: Any, wanted: Sequence[bool]) -> None:
    """Leave in the message of a batch only the wanted records: as if FastStream had parsed no others."""
    records = tuple(itertools.compress(message.raw_message, wanted))
    parsed = await cast("AioKafkaBatchParser", subscriber.parser).parse_batch(records)
    # A parser of the user's own may have made anything of the values.
    if isinstance(message.body, list) and len(message.body) == len(wanted):
        message.body = list(itertools.compress(message.body, wanted))
    for name in (
        *("raw_message", "headers", "batch_headers", "reply_to", "content_type"),
        *("correlation_id", "message_id", "path"),
    ):
        setattr(message, name, getattr(parsed, name))
    message.clear_cache()


def surround_waits(limiter: CapacityLimiter, waiting: Callable[[], AbstractContextManager[None]]) -> Callable[[], None]:
    """Have whoever must wait for a token of anyio's limiter wait within `waiting()`; return what ends that.

    It has slots, so nothing can be set on the instance: it gets a class of its own.
    """
    original: Any = type(limiter)

    class Surrounded(original):
        __slots__ = ()

        @override
        async def acquire_on_behalf_of(self, borrower: object) -> None:
            if self.available_tokens > 0:
                await super().acquire_on_behalf_of(borrower)
                return
            with waiting():
                await super().acquire_on_behalf_of(borrower)

    def undo() -> None:
        if isinstance(limiter, Surrounded):
            limiter.__class__ = original

    limiter.__class__ = Surrounded
    return undo


def is_unreadable(error: BaseException, raw: Any) -> bool:
    """Whether an error was raised while FastStream read a record: by its parser, its decoder or a filter."""
    for frame, place in _frames(error):
        # Nothing is asked of other frames: what is asked stays in them, and may be the error itself.
        if place == _PARSES and frame.f_locals["msg"] is raw:
            return True
        # A message is decoded when its handler is called, after the middlewares; and a handler may decode others.
        if place == _DECODES and frame.f_locals["self"].raw_message is raw:
            return True
    return False


def logs_failures(subscriber: LogicSubscriber[Any], error: BaseException) -> bool:
    """Whether FastStream has logged an error that came out of a pass, with its traceback."""
    if any(place == _LOGS for _, place in _frames(error)):
        # It has tried to, and the text of the error can't be read.
        return False
    broker_logger = subscriber._outer_config.logger.logger.logger
    return broker_logger is not None and not (isinstance(broker_logger, logging.Logger) and _is_off(broker_logger))


def _frames(error: BaseException) -> Iterator[tuple[FrameType, tuple[str, str]]]:
    """Yield the frames that an error went through, and the module and function of each."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        yield frame, (str(frame.f_globals.get("__name__")), frame.f_code.co_name)
        trace = trace.tb_next


def _is_off(broker_logger: logging.Logger) -> bool:
    if not broker_logger.isEnabledFor(logging.ERROR):
        return True
    logger: logging.Logger | None = broker_logger
    handlers: list[logging.Handler] = []
    while logger is not None:
        handlers += logger.handlers
        logger = logger.parent if logger.propagate else None
    handlers = handlers or ([logging.lastResort] if logging.lastResort is not None else [])
    return all(isinstance(each, logging.NullHandler) or each.level > logging.ERROR for each in handlers)


def reads(subscriber: LogicSubscriber[Any], topic: str) -> bool:
    """Whether a subscriber reads a topic: as it was declared, or as its consumer has been told since."""
    names = {*subscriber.topic_names_for_subscribe, *(each.topic for each in subscriber.partitions)}
    patterns = [] if subscriber.pattern is None else [re.compile(subscriber.pattern.broker_address)]
    if isinstance(consumer := subscriber.consumer, AIOKafkaConsumer):
        names.update(consumer.subscription() or (), (each.topic for each in consumer.assignment()))
        subscribed: Any = consumer._subscription.subscribed_pattern
        patterns += [] if subscribed is None else [subscribed]
    # As aiokafka does: from the beginning, not to the end.
    return topic in names or any(pattern.match(topic) for pattern in patterns)


def context_of(subscriber: LogicSubscriber[Any]) -> Any:
    """Return FastStream's context repository."""
    return subscriber._outer_config.context


class _Parser:
    """In place of a subscriber's own: it is what FastStream shows each new consumer to before that subscribes."""

    def __init__(self, parser: Any, adopt: Callable[[Any], Any]) -> None:
        self.parser = parser
        self._adopt = adopt

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parser, name)

    def _setup(self, consumer: Any) -> None:
        self.parser._setup(self._adopt(consumer))


def tell_of_consumers(subscriber: LogicSubscriber[Any], adopt: Callable[[Any], Any] | None) -> None:
    """Have `adopt` called with each new consumer before that subscribes; messages acknowledge through its result."""
    parser: Any = subscriber.parser
    own = parser.parser if isinstance(parser, _Parser) else parser
    attributes: Any = subscriber
    attributes.parser = own if adopt is None else _Parser(own, adopt)


def wrap_listener(consumer: Any, wrap: Callable[[Any], Any]) -> None:
    """Replace the listener of a consumer whose subscription has been made; manually assigned ones have none."""
    subscription = consumer._subscription
    if subscription.partitions_auto_assigned():
        subscription._listener = wrap(subscription._listener)


def set_consumer_of_messages(subscriber: LogicSubscriber[Any], consumer: Any) -> None:
    """Have the messages of the subscriber acknowledge through `consumer`."""
    parser: Any = subscriber.parser
    (parser.parser if isinstance(parser, _Parser) else parser)._setup(consumer)


def max_poll_interval_sec(consumer: Any) -> float:
    """Return after how many seconds without a fetch a consumer leaves its group."""
    return float(getattr(consumer, "_max_poll_interval_ms", _DEFAULT_MAX_POLL_INTERVAL_MS)) / 1000


def count_as_polled(consumer: Any) -> None:
    """Have a consumer take this for a fetch, which it wants to see every `max_poll_interval_ms`."""
    subscription = getattr(consumer, "_subscription", None)
    if subscription is not None:
        with subscription.fetch_context():
            pass


def awaiting(future: asyncio.Future[Any]) -> Iterator[asyncio.Future[Any]]:
    """Yield the futures, tasks among them, that a future resolves or resumes when it is done.

    Follows `await`, `gather`, `wait`, `wait_for`, `shield`, and the task groups of asyncio and anyio.
    """
    for callback, _context in getattr(future, "_callbacks", None) or ():
        held: list[Any] = [getattr(callback, "__self__", None)]
        held += callback.args if isinstance(callback, functools.partial) else ()
        held += [cell.cell_contents for cell in getattr(callback, "__closure__", None) or () if _is_filled(cell)]
        for each in held:
            # asyncio's and anyio's: it waits by a future of its own.
            future_of_it = each._on_completed_fut if type(each).__name__ == "TaskGroup" else each
            if isinstance(future_of_it, asyncio.Future):
                yield future_of_it


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises where there are none yet
    except ValueError:
        return False
    return True


def session_timeout_sec(consumer: Any) -> float:
    """Return after how many seconds without a heartbeat a broker evicts a consumer from its group."""
    return float(getattr(consumer, "_session_timeout_ms", _DEFAULT_SESSION_TIMEOUT_MS)) / 1000


def group_instance_id(consumer: Any) -> Any:
    """Return by which name a static member is known to its group."""
    return getattr(consumer, "_group_instance_id", None)


def is_member(consumer: Any) -> bool:
    """Whether the consumer belongs to its group, as far as it knows: one that was evicted has no generation."""
    return bool(getattr(getattr(consumer, "_coordinator", None), "generation", None) != _NO_GENERATION)


def rebalance_timeout_sec(consumer: Any) -> float:
    """Return for how many seconds its group waits for a consumer that has to join it again."""
    timeout_ms = getattr(consumer, "_rebalance_timeout_ms", None)
    return session_timeout_sec(consumer) if timeout_ms is None else float(timeout_ms) / 1000


# The tasks that a consumer runs on, and never starts again: where they are kept, and what they do.
_TASKS_OF_A_CONSUMER = {
    ("_coordinator", "_coordination_task"): "group coordination",
    ("_fetcher", "_fetch_task"): "fetching",
    ("_client", "_sync_task"): "metadata refresh",
}


def dead_tasks(consumer: Any) -> list[str]:
    """Name the tasks of a consumer that have ended, after which sooner or later nothing is delivered any more."""
    return [
        what
        for (owner, name), what in _TASKS_OF_A_CONSUMER.items()
        if (task := getattr(getattr(consumer, owner, None), name, None)) is not None and task.done()
    ]


def revive_group_membership(consumer: Any) -> None:
    """Have a consumer join its group again when its heartbeats have ended with an error.

    aiokafka starts them with a join alone: without one, each fetch raises that same error, whatever has changed since.
    """
    coordinator: Any = getattr(consumer, "_coordinator", None)
    for name in ("_heartbeat_task", "_commit_refresh_task"):
        task = getattr(coordinator, name, None)
        if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
            coordinator.request_rejoin()


def missing_topics(consumer: Any) -> list[str]:
    """Return the subscribed topics of which the cluster had no partitions when the consumer last asked."""
    if not isinstance(consumer, AIOKafkaConsumer):
        return []
    return sorted(topic for topic in consumer.subscription() or () if not consumer.partitions_for_topic(topic))


def ask_for_topics(consumer: Any) -> None:
    """Have a consumer ask for its topics now; by itself it does so every `metadata_max_age_ms` (five minutes)."""
    consumer._client.force_metadata_update()


class FetchState(NamedTuple):
    """How far a consumer has come in a partition that is not paused."""

    position: int | None
    """The offset of the next record; None while it is unknown."""
    end: int | None
    """The offset behind the last record that could be delivered, as of the last answer."""
    answered_at: float | None
    """When the broker last answered a fetch, by any clock."""


def fetch_states(consumer: Any) -> dict[TopicPartition, FetchState]:
    """Return how far the consumer has come in each partition that is assigned and not paused."""
    assignment = _assignment_of(consumer)
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


def exists(consumer: Any, partition: TopicPartition) -> bool:
    """Whether the cluster has the partition, by what the consumer was last told; what isn't aiokafka's has all."""
    if not isinstance(consumer, AIOKafkaConsumer):
        return True
    return partition.partition in (consumer.partitions_for_topic(partition.topic) or ())


def guard_commits(consumer: Any) -> None:
    """See to the requests that a consumer's commits send, at each of the attempts that aiokafka makes.

    Of a member of a group none is sent while it is none: a broker takes such a commit from anybody as soon as the group
    is empty, and what the others have committed meanwhile would be undone.

    A cancelled `commit` leaves the request that it has sent, in a task that nobody waits for: if that fails, nobody is
    told, where asyncio would log an exception that was never retrieved.
    """
    if getattr(consumer, "_coordinator", None) is not None:
        _guard(consumer, consumer._coordinator)
    else:
        start = consumer.start

        # aiokafka makes it when the consumer starts.
        async def start_guarded() -> None:
            await start()
            _guard(consumer, consumer._coordinator)

        consumer.start = start_guarded


def _guard(consumer: Any, coordinator: Any) -> None:
    send = coordinator._do_commit_offsets

    async def send_as_member(*arguments: Any) -> None:
        if consumer._subscription.partitions_auto_assigned() and coordinator.generation == _NO_GENERATION:
            raise CommitFailedError("the consumer is not a member of its group now")
        await send(*arguments)

    def request(*arguments: Any) -> asyncio.Future[None]:
        sending = asyncio.ensure_future(send_as_member(*arguments))
        sending.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        return sending

    coordinator._do_commit_offsets = request


class Outgoing(NamedTuple):
    """What a consumer owns until the rebalance that its `subscribe` at run time has asked for."""

    partitions: frozenset[TopicPartition]
    commit: Callable[[Mapping[TopicPartition, Any]], Awaitable[None]]
    """As `consumer.commit`, which refuses everything until there is another assignment."""


def outgoing(consumer: Any) -> Outgoing | None:
    """Return what a consumer owns now, and is to own until its next assignment; None if it is no member of a group."""
    assignment, coordinator = _assignment_of(consumer), getattr(consumer, "_coordinator", None)
    if assignment is None or coordinator is None or not consumer._subscription.partitions_auto_assigned():
        return None

    async def commit(offsets: Mapping[TopicPartition, Any]) -> None:
        await coordinator.commit_offsets(assignment, commit_structure_validate(dict(offsets)))

    return Outgoing(frozenset(assignment.tps), commit)


class PositionWatch(Protocol):
    """Who is told how aiokafka finds where to go on."""

    def committed(self, key: TopicPartition, offset: int, metadata: str) -> None:
        """Note the committed offset of a partition."""
        ...

    def found(self, key: TopicPartition, position: int) -> None:
        """Note where a partition goes on: at its committed offset, or where a reset has found a place."""
        ...

    def sought(self, key: TopicPartition, position: int) -> None:
        """Note where the user wants a partition to go on."""
        ...


def _assignment_of(consumer: Any) -> Any:
    subscription = getattr(getattr(consumer, "_subscription", None), "subscription", None)
    return getattr(subscription, "assignment", None)


def watch_positions(consumer: Any, watch: PositionWatch) -> None:
    """Tell how the position of each partition is found, in the present assignment, before anything is fetched there."""
    assignment = _assignment_of(consumer)
    for key in () if assignment is None else assignment.tps:
        state = assignment.state_value(key)
        if "reset_to" not in vars(state):
            _watch_state(key, state, watch, lambda: _assignment_of(consumer) is assignment)


def _watch_state(key: TopicPartition, state: Any, watch: PositionWatch, is_current: Callable[[], bool]) -> None:
    reset_to, seek, update_committed = state.reset_to, state.seek, state.update_committed

    def tell(call: Callable[..., None], *arguments: Any) -> None:
        if is_current():
            try:
                call(key, *arguments)
            except Exception:
                # It would end the task of aiokafka's that we are in, and with it the consumer.
                logger.exception("What was found of %s[%d] got lost", *key)

    def _update_committed(committed: Any) -> None:
        if committed.offset >= 0:
            tell(watch.committed, committed.offset, committed.metadata)
        update_committed(committed)

    def _reset_to(position: int) -> None:
        reset_to(position)
        tell(watch.found, position)

    def _seek(position: int) -> None:
        seek(position)
        tell(watch.sought, position)

    state.update_committed, state.reset_to, state.seek = _update_committed, _reset_to, _seek


def positions(consumer: Any) -> dict[TopicPartition, int]:
    """Return the positions of the partitions that have one."""
    assignment = _assignment_of(consumer)
    states = {} if assignment is None else {key: assignment.state_value(key) for key in assignment.tps}
    return {key: state.position for key, state in states.items() if state.has_valid_position}


def lacks_position(consumer: Any) -> bool:
    """Whether aiokafka is still looking for the position of a partition."""
    return isinstance(consumer, AIOKafkaConsumer) and len(positions(consumer)) < len(consumer.assignment())


async def committed_offsets(consumer: Any, partitions: Iterable[TopicPartition]) -> Any:
    """Return, by partition, the `OffsetAndMetadata` that is committed; `consumer.committed` leaves the metadata out.

    Retries for ever what can be retried.
    """
    coordinator = getattr(consumer, "_coordinator", None)
    return {} if coordinator is None else await coordinator.fetch_committed_offsets(list(partitions))


def make_producer(subscriber: LogicSubscriber[Any]) -> Any:
    """Return an `AIOKafkaProducer` for the subscriber's cluster that waits for all in-sync replicas; it is not started.

    Not the broker's own: there is none with `consumer_only=True`, and its `acks` are the application's.
    """
    # What the consumers of the broker are made with; of that, what has to do with the consumer alone is left out.
    options = dict(getattr(subscriber._outer_config.builder, "keywords", {}))
    for name in ("client_rack", "group_instance_id"):
        options.pop(name, None)
    options["request_timeout_ms"] = min(options.get("request_timeout_ms", _PUBLISH_TIMEOUT_MS), _PUBLISH_TIMEOUT_MS)
    return AIOKafkaProducer(
        **options,
        acks="all",
        # What has come compressed might be too large otherwise.
        compression_type="gzip",
        max_request_size=_ANY_SIZE,
    )
