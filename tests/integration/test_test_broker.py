"""Under FastStream's TestKafkaBroker handlers run inline, without warnings, as without the library."""

from contextlib import asynccontextmanager

import pytest
from faststream import ContextRepo, FastStream, TestApp
from faststream.exceptions import NackMessage
from faststream.kafka import TestKafkaBroker

from faststream_concurrent_kafka import initialize_concurrent_processing, stop_concurrent_processing
from tests.integration.helpers import Seen, manual, warnings_of


TOPIC, OUT = "under-test", "under-test-out"


@pytest.fixture
def app(new_broker):
    """An application whose handler publishes, and refuses negative numbers; its lifespan initialises the library."""
    broker, app_seen = new_broker(), Seen()

    @asynccontextmanager
    async def lifespan(context: ContextRepo):
        await initialize_concurrent_processing(context)
        yield
        await stop_concurrent_processing(context)

    publisher = broker.publisher(OUT)

    async def handle(number: int) -> int:
        with app_seen.handling(number):
            if number < 0:
                raise ValueError(number)
            return number * 2

    made = FastStream(broker, lifespan=lifespan, logger=None)
    made.context.set_global("handle", broker.subscriber(TOPIC, **manual(TOPIC))(publisher(handle)))
    made.context.set_global("publisher", publisher)
    made.context.set_global("seen", app_seen)
    return made


@pytest.fixture(params=["initialised", "not initialised"])
async def broker(app, request):
    """The application's broker under test, with the lifespan and without it."""
    async with TestKafkaBroker(app.broker, connect_only=request.param == "initialised") as under_test:
        if request.param == "initialised":
            async with TestApp(app):
                yield under_test
        else:
            yield under_test


async def test_publishing_returns_after_the_handler_has_run(app, broker, caplog):
    """Nothing runs in the background: `publish` returns when the handler has ended."""
    for number in range(5):
        await broker.publish(number, TOPIC)
        assert app.context.get("seen").values[-1] == number
    assert warnings_of(caplog) == []


async def test_handlers_mocks_work(app, broker):
    """`handler.mock` has the call, and a publisher's has the result."""
    await broker.publish(21, TOPIC)
    app.context.get("handle").mock.assert_called_once_with(21)
    app.context.get("publisher").mock.assert_called_once_with(42)


async def test_errors_propagate(broker):
    """`publish` raises the handler's exception, and that of a nack."""
    with pytest.raises(ValueError, match="-1"):
        await broker.publish(-1, TOPIC)


async def test_batches_and_nacks(new_broker):
    """A batch subscriber runs inline as well; `publish` raises NackMessage like any other exception."""
    broker = new_broker()

    async def handle(numbers: list[int]):
        if numbers:
            raise NackMessage

    subscribed = broker.subscriber(TOPIC, batch=True, **manual(TOPIC))(handle)
    async with TestKafkaBroker(broker):
        with pytest.raises(NackMessage):
            await broker.publish_batch(1, 2, topic=TOPIC)
        assert subscribed.mock.call_count == 1


async def test_with_a_real_broker_the_test_broker_is_concurrent(cluster, new_broker, new_topic):
    """`TestKafkaBroker(..., with_real=True)` consumes for real, and mocks work there too."""
    topic, broker = await new_topic(), new_broker()

    async def handle(number: int): ...

    subscribed = broker.subscriber(topic, **manual(topic))(handle)
    async with TestKafkaBroker(broker, with_real=True):
        await initialize_concurrent_processing(broker.context, broker=broker)
        await broker.publish(7, topic)
        await subscribed.wait_call(10)
        await cluster.until_committed(topic, {0: 1})
        subscribed.mock.assert_called_once_with(7)
    await stop_concurrent_processing(broker.context)
