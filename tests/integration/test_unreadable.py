"""Records that FastStream can't read are malformed, for any exception; errors of middlewares are retried."""

from typing import Annotated, Any

import pytest
from faststream import BaseMiddleware, Depends
from typing_extensions import override

from faststream_concurrent_kafka import Attempt, FailurePolicy, KafkaConcurrentProcessingMiddleware
from tests.integration.helpers import Seen, consuming, manual, serving


FOR_EVER = FailurePolicy(max_attempts=0, first_backoff_sec=0.01, max_backoff_sec=0.01)


class OddError(Exception):
    """An exception of a parsing library."""


async def odd(*_args):
    raise OddError


async def odd_connection(*_args):
    raise ConnectionError


UNREADABLE: dict[str, tuple[Any, dict[str, Any]]] = {
    "a header without a value": ([("trace", None)], {}),
    "by the parser": (None, {"parser": odd}),
    "by the decoder": (None, {"decoder": odd}),
    "by a filter": (None, {"filter": odd}),
    "a connection that fails in the decoder": (None, {"decoder": odd_connection}),
}


class Translating(BaseMiddleware):
    """A middleware that translates errors."""

    @override
    async def after_processed(self, exc_type=None, exc_val=None, exc_tb=None):
        if exc_val is not None:
            raise RuntimeError("translated") from exc_val
        return False


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batch"])
@pytest.mark.parametrize("kind", [*UNREADABLE, "translated by a middleware"])
async def test_a_record_that_can_not_be_read_is_not_tried_again(cluster, new_broker, new_topic, kind, batch):
    """It is given up after one pass, although other failures would be retried for ever."""
    topic, passes = await new_topic(), []

    class Counting(BaseMiddleware):
        @override
        async def on_receive(self):
            passes.append(self.msg)

    headers, options = UNREADABLE.get(kind, ([("trace", None)], {}))
    others = () if kind in UNREADABLE else (Translating,)
    broker = new_broker(*others, KafkaConcurrentProcessingMiddleware, Counting)

    async def handle(body: Any):
        raise AssertionError(body)

    broker.subscriber(topic, **manual(topic, batch=batch))(handle, **options)
    await cluster.send(topic, [1], headers=headers)
    async with serving(broker, on_failure=FOR_EVER, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 1})
    assert len(passes) == 1


async def test_a_type_in_retry_on_has_an_unreadable_record_tried_again(cluster, new_broker, new_topic):
    """For example the error of a decoder whose schema registry is down."""
    topic, seen, broker, asked = await new_topic(), Seen(), new_broker(), []

    async def decode(message):
        asked.append(message.body)
        if len(asked) < 3:
            raise ConnectionError("the registry is down")
        return message.body.decode()

    @consuming(broker, topic, decoder=decode)
    async def handle(text: str):
        with seen.handling(text):
            pass

    await cluster.send(topic, ["text"])
    policy = FailurePolicy(max_attempts=0, first_backoff_sec=0.01, retry_on=ConnectionError)
    async with serving(broker, on_failure=policy, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 1})
    assert (len(asked), seen.values) == (3, ["text"])


@pytest.mark.parametrize("where", ["on_receive", "consume_scope", "a dependency"])
@pytest.mark.parametrize("order", ["ours first", "ours last"])
async def test_what_fails_on_the_way_to_the_handler_is_tried_again(cluster, new_broker, new_topic, where, order):
    """The database of a middleware or a dependency may be back at the next attempt."""
    topic, failures, handled = await new_topic(), [], []

    def fail_twice(here):
        if here == where and len(failures) < 2:
            failures.append(here)
            raise ConnectionError("down")

    class Failing(BaseMiddleware):
        @override
        async def on_receive(self):
            if self.msg is not None:
                fail_twice("on_receive")

        @override
        async def consume_scope(self, call_next, msg):
            fail_twice("consume_scope")
            return await call_next(msg)

    async def depend():
        fail_twice("a dependency")

    both = (KafkaConcurrentProcessingMiddleware, Failing)
    broker = new_broker(*(both if order == "ours first" else both[::-1]))

    @consuming(broker, topic)
    async def handle(number: int, attempt: Attempt, _nothing: Annotated[None, Depends(depend)]):
        handled.append((number, attempt))

    await cluster.send(topic, [1])
    async with serving(broker, on_failure=FOR_EVER, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 1})
    assert handled == [(1, 3)]
