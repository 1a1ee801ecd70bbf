"""FastStream's messages and the chain of middlewares around their handler."""

import functools
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import FrameType
from typing import Any, cast

from aiokafka import AIOKafkaConsumer
from faststream.kafka.parser import AioKafkaBatchParser
from faststream.kafka.subscriber.usecase import LogicSubscriber


# The functions in which FastStream parses and filters a record, and in which it decodes one.
_PARSES = ("faststream._internal.endpoint.subscriber.call_item", "is_suitable")
_DECODES = ("faststream.message.message", "decode")


def around_innermost(
    call: Callable[[Any], Awaitable[Any]],
    wrap: Callable[[Callable[[Any], Awaitable[Any]]], Callable[[Any], Awaitable[Any]]],
) -> Callable[[Any], Awaitable[Any]]:
    """Wrap the handler, at the end of the chain of middlewares `call`; wrap `call` itself if it is no such chain."""
    if isinstance(call, functools.partial) and len(call.args) == 1 and not call.keywords:
        return functools.partial(call.func, around_innermost(call.args[0], wrap))
    return wrap(call)


async def narrow_batch(subscriber: LogicSubscriber[Any], message: Any, wanted: Sequence[bool]) -> None:
    """Remove the unwanted records from the message of a batch, as if FastStream had parsed only the others."""
    records = tuple(itertools.compress(message.raw_message, wanted))
    parsed = await cast("AioKafkaBatchParser", subscriber.parser).parse_batch(records)
    # A custom parser may have made something else than a list of the values.
    if isinstance(message.body, list) and len(message.body) == len(wanted):
        message.body = list(itertools.compress(message.body, wanted))
    for name in (
        *("raw_message", "headers", "batch_headers", "reply_to", "content_type"),
        *("correlation_id", "message_id", "path"),
    ):
        setattr(message, name, getattr(parsed, name))
    message.clear_cache()


def is_unreadable(error: BaseException, raw: Any) -> bool:
    """Whether an error was raised while FastStream read a record: by its parser, its decoder or a filter."""
    for frame, place in frames_of_error(error):
        # `f_locals` is read of these frames only: a frame that still runs keeps its values, so possibly the error
        # itself.
        if place == _PARSES and frame.f_locals["msg"] is raw:
            return True
        # Decoding happens when the handler is called, after the middlewares; the handler itself may decode other
        # messages.
        if place == _DECODES and frame.f_locals["self"].raw_message is raw:
            return True
    return False


def frames_of_error(error: BaseException) -> Iterator[tuple[FrameType, tuple[str, str]]]:
    """Yield the frames of an error's traceback, and the module and function of each."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        yield frame, (str(frame.f_globals.get("__name__")), frame.f_code.co_name)
        trace = trace.tb_next


class MessageConsumer:
    """The consumer that messages and handlers get: `commit` and `seek` do nothing, everything else is the consumer's.

    A `commit` without offsets would commit the position, past records that are still being handled, and a `seek` would
    make other records run twice. The library reads the outcome of `ack`, `nack` and `reject` from the message.
    """

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    async def commit(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: the library commits."""

    def seek(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: the library handles a nacked record again."""


def consumer_of(message: Any) -> Any:
    """Return the consumer of a message; None if it has none, as under TestKafkaBroker."""
    consumer = getattr(message, "consumer", None)
    if isinstance(consumer, MessageConsumer):
        consumer = consumer._consumer
    return consumer if hasattr(consumer, "assignment") else None


def detach_from_consumer(message: Any, consumer: AIOKafkaConsumer) -> None:
    """Let `ack`, `nack` and `reject` of an already parsed message neither commit nor seek."""
    message.consumer = MessageConsumer(consumer)
