"""FastStream's subscribers: reads their private attributes, and replaces methods on them."""

import asyncio
import contextlib
import functools
import logging
import operator
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from faststream.kafka.subscriber.usecase import DefaultSubscriber, LogicSubscriber

from faststream_concurrent_kafka._runtime.stack import frames_of
from faststream_concurrent_kafka._upstream.messages import frames_of_error


# The function that makes a pass over a record.
_PASS = LogicSubscriber.process_message.__code__
_GETONE: Callable[[Any], Awaitable[Any]] = operator.methodcaller("getone")
# The function in which FastStream logs the end of a pass.
_LOGS = ("faststream.middlewares.logging", "__aexit__")
# The time limit of one attempt to publish: long enough for a busy broker, short enough to report a problem soon.
_PUBLISH_TIMEOUT_MS = 10_000
# No limit here: the broker decides which records are too large, and its limit can be changed without a restart.
_ANY_SIZE = 2**31 - 1


def is_real(subscriber: LogicSubscriber[Any]) -> bool:
    """Whether the subscriber consumes from a broker; not so under TestKafkaBroker, and before it is started."""
    return hasattr(subscriber.consumer, "getone") or bool(getattr(subscriber, "consumer_subgroup", None))


def middlewares_of(subscriber: LogicSubscriber[Any]) -> Iterator[Any]:
    """Yield the middlewares of a subscriber, its broker's first: the classes, taken out of `functools.partial`."""
    for entry in subscriber._broker_middlewares:
        yield entry.func if isinstance(entry, functools.partial) else entry


def reads(subscriber: LogicSubscriber[Any], topic: str) -> bool:
    """Whether a subscriber reads a topic, by its declaration or by the present subscription of its consumer."""
    names = {*subscriber.topic_names_for_subscribe, *(each.topic for each in subscriber.partitions)}
    patterns = [] if subscriber.pattern is None else [re.compile(subscriber.pattern.broker_address)]
    if isinstance(consumer := subscriber.consumer, AIOKafkaConsumer):
        names.update(consumer.subscription() or (), (each.topic for each in consumer.assignment()))
        subscribed: Any = consumer._subscription.subscribed_pattern
        patterns += [] if subscribed is None else [subscribed]
    # Like aiokafka: `match`, which need not reach the end.
    return topic in names or any(pattern.match(topic) for pattern in patterns)


class ReplacedMethods:
    """Methods that are replaced on a subscriber instance; FastStream keeps `__dict__` on subscribers for that.

    `TestKafkaBroker` calls none of them.
    """

    def __init__(self, subscriber: LogicSubscriber[Any], methods: Mapping[str, Callable[..., Any]]) -> None:
        """Replace them."""
        self._subscriber = subscriber
        self._methods = dict(methods)
        self._originals = {name: getattr(subscriber, name) for name in methods}
        for name, method in methods.items():
            setattr(subscriber, name, method)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """Return the method that was replaced."""
        return self._originals[name]

    def restore(self) -> None:
        """Restore the original methods, except where other code has replaced them since."""
        subscriber = self._subscriber
        for name, method in self._methods.items():
            if subscriber.__dict__.get(name) == method:
                delattr(subscriber, name)
                if getattr(subscriber, name) != self._originals[name]:
                    setattr(subscriber, name, self._originals[name])


def plain_fetch(get_msg: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """Return what FastStream's `get_msg` of a subscriber without batches calls, or `get_msg` if it is another one."""
    is_plain = getattr(get_msg, "__func__", None) is DefaultSubscriber.get_msg
    return _GETONE if is_plain else get_msg


def skip_wait_for_records(subscriber: LogicSubscriber[Any]) -> None:
    """Let FastStream's stop not wait for running passes."""
    subscriber.lock = contextlib.nullcontext()


def keep_from_cancelling(subscriber: LogicSubscriber[Any], task: asyncio.Task[Any] | None) -> None:
    """Let FastStream's stop not cancel this task, if it is one of its loops."""
    if task in subscriber.tasks:
        subscriber.tasks.remove(task)


def context_of(subscriber: LogicSubscriber[Any]) -> Any:
    """Return FastStream's context repository."""
    return subscriber._outer_config.context


def logs_failures(subscriber: LogicSubscriber[Any], error: BaseException) -> bool:
    """Whether FastStream has logged the error of a pass, with its traceback."""
    if any(place == _LOGS for _, place in frames_of_error(error)):
        # FastStream has tried to log it, and its text can't be read.
        return False
    broker_logger = subscriber._outer_config.logger.logger.logger
    return broker_logger is not None and not (isinstance(broker_logger, logging.Logger) and _is_off(broker_logger))


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


class InHand(NamedTuple):
    """The record over which FastStream's own loop is making a pass."""

    loop: asyncio.Task[Any]
    raw: Any
    message: Any
    """The message; None until FastStream has parsed the record."""


def in_hand(subscriber: LogicSubscriber[Any]) -> InHand | None:
    """Return the record or batch over which FastStream's own loop is making a pass, if any."""
    for task in subscriber.tasks:
        for frame in frames_of(task):
            if frame.f_code is _PASS:
                names = frame.f_locals
                return InHand(task, names["msg"], names.get("message"))
    return None


def replace_loop(subscriber: LogicSubscriber[Any], loop: asyncio.Task[Any]) -> None:
    """Start a new loop of FastStream's in place of this one, which ends by `ConsumerStoppedError` at its next fetch.

    FastStream forgets the old loop, because its supervisor would restart that if a handler's exception ended it.
    """
    subscriber.tasks.remove(loop)
    subscriber.add_task(subscriber._run_consume_loop, (subscriber.consumer,))


class _Parser:
    """Replaces a subscriber's parser, to which FastStream passes each new consumer before that subscribes."""

    def __init__(self, parser: Any, adopt: Callable[[Any], Any]) -> None:
        self.parser = parser
        self._adopt = adopt

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parser, name)

    def _setup(self, consumer: Any) -> None:
        self.parser._setup(self._adopt(consumer))


def watch_consumers(subscriber: LogicSubscriber[Any], adopt: Callable[[Any], Any] | None) -> None:
    """Let `adopt` be called with each new consumer before that subscribes; messages acknowledge through its result."""
    parser: Any = subscriber.parser
    own = parser.parser if isinstance(parser, _Parser) else parser
    attributes: Any = subscriber
    attributes.parser = own if adopt is None else _Parser(own, adopt)


def set_consumer_of_messages(subscriber: LogicSubscriber[Any], consumer: Any) -> None:
    """Let the messages of the subscriber acknowledge through `consumer`."""
    parser: Any = subscriber.parser
    (parser.parser if isinstance(parser, _Parser) else parser)._setup(consumer)


def make_producer(subscriber: LogicSubscriber[Any]) -> Any:
    """Return an `AIOKafkaProducer` for the subscriber's cluster that waits for all in-sync replicas; it is not started.

    Not the broker's own producer: with `consumer_only=True` there is none, and its `acks` are the application's.
    """
    # The connection options of the broker's consumers, without those that only consumers have.
    options = dict(getattr(subscriber._outer_config.builder, "keywords", {}))
    for name in ("client_rack", "group_instance_id"):
        options.pop(name, None)
    options["request_timeout_ms"] = min(options.get("request_timeout_ms", _PUBLISH_TIMEOUT_MS), _PUBLISH_TIMEOUT_MS)
    return AIOKafkaProducer(
        **options,
        acks="all",
        # A record that came compressed may be too large without compression.
        compression_type="gzip",
        max_request_size=_ANY_SIZE,
    )
