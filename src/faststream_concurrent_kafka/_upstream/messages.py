"""FastStream's messages and the chain of middlewares around their handler."""

import functools
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import FrameType
from typing import Any, cast

from aiokafka import AIOKafkaConsumer
from faststream.kafka.parser import AioKafkaBatchParser
from faststream.kafka.subscriber.usecase import LogicSubscriber


# Where FastStream parses and filters a record, and where it decodes one.
_PARSES = ("faststream._internal.endpoint.subscriber.call_item", "is_suitable")
_DECODES = ("faststream.message.message", "decode")


def around_innermost(
    call: Callable[[Any], Awaitable[Any]],
    wrap: Callable[[Callable[[Any], Awaitable[Any]]], Callable[[Any], Awaitable[Any]]],
) -> Callable[[Any], Awaitable[Any]]:
    """Wrap what the chain of middlewares `call` ends in: the handler. What is no such chain is wrapped as a whole."""
    if isinstance(call, functools.partial) and len(call.args) == 1 and not call.keywords:
        return functools.partial(call.func, around_innermost(call.args[0], wrap))
    return wrap(call)


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


def is_unreadable(error: BaseException, raw: Any) -> bool:
    """Whether an error was raised while FastStream read a record: by its parser, its decoder or a filter."""
    for frame, place in frames_of_error(error):
        # Nothing is asked of other frames: what is asked stays in them, and may be the error itself.
        if place == _PARSES and frame.f_locals["msg"] is raw:
            return True
        # A message is decoded when its handler is called, after the middlewares; and a handler may decode others.
        if place == _DECODES and frame.f_locals["self"].raw_message is raw:
            return True
    return False


def frames_of_error(error: BaseException) -> Iterator[tuple[FrameType, tuple[str, str]]]:
    """Yield the frames that an error went through, and the module and function of each."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        yield frame, (str(frame.f_globals.get("__name__")), frame.f_code.co_name)
        trace = trace.tb_next


class MessageConsumer:
    """Reads like the consumer, and neither commits nor seeks.

    A bare `commit` would commit the current position, past records that are still being handled, and a `seek` would
    make other records run twice. The outcome of `ack`, `nack` and `reject` is read off the message instead.
    """

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    async def commit(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: the library commits."""

    def seek(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: a record that was not acknowledged is handled again by itself."""


def consumer_of(message: Any) -> Any:
    """Return the consumer that a message was read by; None where there is none, as under TestKafkaBroker."""
    consumer = getattr(message, "consumer", None)
    if isinstance(consumer, MessageConsumer):
        consumer = consumer._consumer
    return consumer if hasattr(consumer, "assignment") else None


def detach_from_consumer(message: Any, consumer: AIOKafkaConsumer) -> None:
    """Keep `ack`, `nack` and `reject` of a message that is parsed already off its consumer."""
    message.consumer = MessageConsumer(consumer)
