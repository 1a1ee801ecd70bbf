"""The private parts of FastStream, aiokafka, anyio and asyncio that the library uses, each in its own test."""

import ast
import asyncio
import dataclasses
import functools
import inspect
import logging
import textwrap
from typing import Annotated, Any

import anyio
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import ConsumerStoppedError
from aiokafka.protocol.commit import OffsetCommitRequest
from faststream import BaseMiddleware, Context
from faststream._internal.endpoint.subscriber.usecase import SubscriberUsecase
from faststream.kafka import KafkaBroker, KafkaRouter, TestKafkaBroker
from faststream.kafka.message import FAKE_CONSUMER, KafkaAckableMessage, KafkaMessage
from faststream.kafka.parser import AioKafkaBatchParser, AioKafkaParser
from faststream.kafka.subscriber.usecase import BatchSubscriber, DefaultSubscriber, LogicSubscriber
from faststream.middlewares import AckPolicy
from typing_extensions import override

from faststream_concurrent_kafka._upstream.consumers import (
    FetchState,
    committed_offsets,
    count_as_polled,
    dead_tasks,
    exists,
    fetch_states,
    lacks_position,
    rebalance_timeout_sec,
)
from faststream_concurrent_kafka._upstream.messages import is_unreadable, narrow_batch
from faststream_concurrent_kafka._upstream.subscribers import (
    in_hand,
    logs_failures,
    make_producer,
    plain_fetch,
    replace_loop,
)
from faststream_concurrent_kafka._upstream.tasks import awaiting


def names_in(function):
    """Return every attribute and name in a function's source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    nodes = list(ast.walk(tree))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {node.id for node in nodes if isinstance(node, ast.Name)}


def calls_in(function):
    """Return the calls in a function's source, in order, as text."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.fixture
def subscriber():
    broker = KafkaBroker(logger=None)
    made = broker.subscriber("topic", group_id="group", ack_policy=AckPolicy.MANUAL)

    @made
    async def handle(msg: str) -> None: ...

    return made


@pytest.mark.parametrize("name", ["get_msg", "start", "stop"])
def test_methods_can_be_patched_on_a_subscriber_instance(subscriber, name):
    """FastStream leaves `__dict__` on its slotted endpoints."""

    async def ours(*_args):
        return None

    setattr(subscriber, name, ours)
    assert getattr(subscriber, name) is ours
    delattr(subscriber, name)
    assert getattr(subscriber, name) == getattr(type(subscriber), name).__get__(subscriber)


def test_the_loop_looks_up_get_msg_on_the_instance_and_takes_none():
    """`_run_consume_loop`: `await self.get_msg(consumer)`, then `consume_one` only if that has returned a message."""
    calls = calls_in(LogicSubscriber._run_consume_loop)
    assert "self.get_msg(consumer)" in calls
    assert "self.consume_one(msg)" in calls
    assert "if msg:" in inspect.getsource(LogicSubscriber._run_consume_loop)
    assert "while self.running:" in inspect.getsource(LogicSubscriber._run_consume_loop)


@pytest.mark.parametrize("kind", [DefaultSubscriber, BatchSubscriber])
def test_get_msg_takes_the_consumer(kind):
    """`get_msg(consumer)` of both kinds."""
    assert list(inspect.signature(kind.get_msg).parameters) == ["self", "consumer"]


def test_process_message_raises_and_consume_does_not():
    """`consume` swallows the outcome and checks `running`; `process_message` does neither."""
    assert "running" in names_in(SubscriberUsecase.consume)
    assert "running" not in names_in(SubscriberUsecase.process_message)
    assert "handler_" in inspect.getsource(SubscriberUsecase.process_message)


@pytest.mark.parametrize("place", ["the parser", "the handler"])
async def test_the_record_that_a_loop_has_in_hand_is_found(place):
    """`process_message` keeps the raw record in its local `msg`, and the parsed message in `message`."""
    broker, held, go_on, seen = KafkaBroker(logger=None), asyncio.Event(), asyncio.Event(), []

    async def hold(where):
        seen.append(in_hand(subscriber))
        if where == place:
            held.set()
            await go_on.wait()

    async def parse(raw, original):
        await hold("the parser")
        return await original(raw)

    subscriber = broker.subscriber("topic", parser=parse)

    @subscriber
    async def handle(message: Annotated[KafkaMessage, Context("message")]):
        await hold("the handler")
        seen.append(message)

    record = ConsumerRecord("topic", 0, 5, 1, 0, None, b"x", None, 0, 1, ())
    async with TestKafkaBroker(broker):
        assert in_hand(subscriber) is None
        loop = asyncio.create_task(subscriber.process_message(record))
        subscriber.tasks.append(loop)
        await held.wait()
        found = in_hand(subscriber)
        go_on.set()
        await loop
        assert in_hand(subscriber) is None
        subscriber.tasks.clear()
    parsing, handling, message = seen
    assert parsing == (loop, record, None)
    assert handling == (loop, record, message)
    assert found == (parsing if place == "the parser" else handling)


async def test_a_loop_that_is_told_that_its_consumer_has_stopped_ends(subscriber):
    """FastStream does not restart a loop that it has forgotten; `_run_consume_loop(consumer)` starts a new one."""
    consumers, forgotten, consumer = [], asyncio.Event(), object()

    async def get_msg(given):
        consumers.append(given)
        await forgotten.wait()
        raise ConsumerStoppedError

    subscriber.get_msg, subscriber.consumer, subscriber.running = get_msg, consumer, True
    subscriber.add_task(subscriber._run_consume_loop, (consumer,))
    (first,) = subscriber.tasks
    await asyncio.sleep(0)
    replace_loop(subscriber, first)
    (second,) = subscriber.tasks
    forgotten.set()
    await asyncio.gather(first, second)
    assert second is not first
    assert consumers == [consumer, consumer]
    assert subscriber.tasks == [second]


def test_subscriber_has_the_attributes_that_are_read(subscriber):
    """The attributes of FastStream's subscriber that the library reads exist."""
    for name in (
        "_broker_middlewares",
        "_outer_config",
        "ack_policy",
        "calls",
        "consumer",
        "group_id",
        "parser",
        "partitions",
        "running",
        "tasks",
        "topic_names",
    ):
        assert hasattr(subscriber, name), name
    assert subscriber.tasks == []
    assert subscriber.consumer is None
    assert hasattr(subscriber._outer_config.context, "get")


def test_middlewares_of_router_and_broker_are_seen_from_the_subscriber():
    """`_broker_middlewares` is dynamic: it has the broker's and the router's, also after include_router."""

    class Ours(BaseMiddleware): ...

    class Theirs(BaseMiddleware): ...

    broker = KafkaBroker(logger=None)
    router = KafkaRouter(middlewares=[Ours])
    inside = router.subscriber("a", group_id="g")
    outside = broker.subscriber("b", group_id="g")
    broker.include_router(router)
    broker.add_middleware(Theirs)
    assert list(inside._broker_middlewares) == [Theirs, Ours]
    assert list(outside._broker_middlewares) == [Theirs]
    assert set(broker.subscribers) == {inside, outside}


def test_max_workers_is_an_attribute_of_concurrent_subscribers():
    """A subscriber with `max_workers` has that attribute."""
    broker = KafkaBroker(logger=None)
    assert broker.subscriber("a", max_workers=3).max_workers == 3
    manual = broker.subscriber("b", group_id="g", max_workers=3, ack_policy=AckPolicy.MANUAL)
    assert manual.max_workers == 3


@pytest.mark.parametrize("parser", [AioKafkaParser, AioKafkaBatchParser])
async def test_a_parser_gives_messages_the_consumer_of_its_setup(parser):
    """`parser._setup(consumer)` decides what `message.consumer` is."""

    class Consumer: ...

    record = ConsumerRecord("t", 0, 5, 1, 0, None, b"x", None, 0, 1, ())
    made = parser(msg_class=KafkaAckableMessage, regex=None)
    consumer = Consumer()
    made._setup(consumer)
    message = await (made.parse_batch((record,)) if parser is AioKafkaBatchParser else made.parse_message(record))
    assert message.consumer is consumer


def test_the_parser_is_shown_each_new_consumer_before_that_subscribes():
    """`start` calls nothing on a consumer before `parser._setup(consumer)`, where the library takes it over."""
    source = inspect.getsource(LogicSubscriber.start)
    shown = source.index("self.parser._setup(consumer)")
    assert min(source.index(f"consumer.{name}(") for name in ("subscribe", "assign", "start")) > shown


async def test_a_narrowed_batch_is_as_if_the_others_had_not_come():
    """Its attributes are those of a batch of the wanted records; values of a custom parser are kept."""
    subscriber = KafkaBroker(logger=None).subscriber("topic", batch=True)
    parser = subscriber.parser
    assert isinstance(parser, AioKafkaBatchParser)
    headers = ((("reply_to", b"a"), ("correlation_id", b"1")), (("reply_to", b"b"), ("correlation_id", b"2")))
    first, second = (ConsumerRecord("t", 0, place, 1, 0, None, b"x", None, 0, 1, headers[place]) for place in (0, 1))
    parsed, only = await parser.parse_batch((first, second)), await parser.parse_batch((second,))
    parsed.set_decoder(parser.decode_batch)
    assert await parsed.decode() == [b"x", b"x"]
    parsed.body = ["one", "two"]
    await narrow_batch(subscriber, parsed, [False, True])
    assert await parsed.decode() == [b"x"]
    assert parsed.body == ["two"]
    replaced = {"body", "_StreamMessage__decoder", "_StreamMessage__decoded_caches", "source_type", "consumer"}
    assert {name: value for name, value in vars(parsed).items() if name not in replaced} == {
        name: value for name, value in vars(only).items() if name not in replaced
    }


def test_ack_and_nack_go_through_message_consumer():
    """`ack` commits and `nack` seeks by `message.consumer`, so `MessageConsumer` makes them harmless."""
    assert "self.consumer.commit()" in calls_in(KafkaAckableMessage.ack)
    assert any(call.startswith("self.consumer.seek(") for call in calls_in(KafkaAckableMessage.nack))


async def test_a_consumer_can_count_as_polled():
    """`_subscription.fetch_context()` resets `fetcher_idle_time`, by which heartbeats check the poll interval."""
    consumer = AIOKafkaConsumer("topic", group_id="group")
    consumer._subscription._last_fetch_ended -= 100
    assert consumer._subscription.fetcher_idle_time >= 100
    count_as_polled(consumer)
    assert consumer._subscription.fetcher_idle_time < 1
    assert consumer._subscription._fetch_count == 0
    assert "idle_time < self._max_poll_interval" in inspect.getsource(GroupCoordinator._heartbeat_routine)
    count_as_polled(None)


async def _in_asyncios_group(task):
    async with asyncio.TaskGroup() as group:
        group.create_task(_plainly(task))


async def _in_anyios_group(task):
    async with anyio.create_task_group() as group:
        group.start_soon(_plainly, task)


async def _plainly(task):
    await task


WAYS_TO_AWAIT = {
    "await": _plainly,
    "gather": lambda task: asyncio.gather(task, asyncio.sleep(0)),
    "shield": asyncio.shield,
    "wait": lambda task: asyncio.wait({task}),
    "wait_for": lambda task: asyncio.wait_for(task, 60),
    "asyncio's task group": _in_asyncios_group,
    "anyio's task group": _in_anyios_group,
}


@pytest.mark.parametrize("way", WAYS_TO_AWAIT)
async def test_who_awaits_a_task_can_be_found(way):
    """Also through other awaitables; asyncio keeps the waiting tasks in the callbacks of futures."""

    async def await_it(task):
        await WAYS_TO_AWAIT[way](task)

    gate = asyncio.Event()
    task, bystander = asyncio.create_task(gate.wait()), asyncio.create_task(gate.wait())
    waiter = asyncio.create_task(await_it(task))
    task.add_done_callback(lambda _, unset=gate: unset)
    for _ in range(5):
        await asyncio.sleep(0)
    found: set[asyncio.Future[Any]] = set()
    more: list[asyncio.Future[Any]] = [task]
    while more:
        new = set(awaiting(more.pop())) - found
        found |= new
        more += new
    assert waiter in found
    assert bystander not in found
    gate.set()
    await asyncio.wait({waiter, bystander})
    assert not list(awaiting(task))


async def test_a_consumer_has_the_private_parts_that_are_read():
    """Its intervals, `_subscription._listener`, `_coordinator`, and the tasks that it needs."""
    consumer = AIOKafkaConsumer(max_poll_interval_ms=1234, session_timeout_ms=2345)
    patient = AIOKafkaConsumer(rebalance_timeout_ms=3456)
    try:
        assert rebalance_timeout_sec(consumer) == 2.345
        assert rebalance_timeout_sec(patient) == 3.456
        assert consumer._max_poll_interval_ms == 1234
        assert consumer._session_timeout_ms == 2345
        assert consumer._subscription._listener is None
        assert consumer._coordinator is None
        assert consumer._fetcher is None
        assert "_coordination_task" in names_in(GroupCoordinator.__init__)
        assert "_fetch_task" in names_in(Fetcher.__init__)
        assert consumer._client._sync_task is None
        assert dead_tasks(consumer) == []
        consumer._client._sync_task = task = asyncio.create_task(asyncio.sleep(0))
        assert dead_tasks(consumer) == []
        await task
        assert dead_tasks(consumer) == ["metadata refresh"]
        consumer._client._sync_task = None
        assert "_listener" in names_in(SubscriptionState.listener.fget)
    finally:
        await consumer.stop()


async def test_an_assignment_has_the_private_parts_that_are_read():
    """The positions of a consumer, and the committed offsets with their metadata."""
    consumer = AIOKafkaConsumer()
    partition = TopicPartition("topic", 0)
    try:
        assert fetch_states(consumer) == {}
        consumer.assign([partition])
        assert fetch_states(consumer) == {partition: FetchState(None, None, None)}
        assert lacks_position(consumer)
        consumer._subscription.seek(partition, 7)
        assert not lacks_position(consumer)
        state = consumer._subscription.subscription.assignment.state_value(partition)
        state.highwater, state.lso, state.timestamp = 9, -1, 123
        assert fetch_states(consumer) == {partition: FetchState(7, 9, 123)}
        state.lso = 8
        assert fetch_states(consumer) == {partition: FetchState(7, 8, 123)}
        state.pause()
        assert fetch_states(consumer) == {}
        assert not exists(consumer, partition)
        assert callable(consumer._client.force_metadata_update)
        assert {"_heartbeat_task", "_commit_refresh_task"} <= names_in(GroupCoordinator.__init__)
        assert callable(GroupCoordinator.request_rejoin)
        assert "DEFAULT_GENERATION_ID" in names_in(GroupCoordinator.reset_generation)
        assert OffsetCommitRequest.DEFAULT_GENERATION_ID == -1
        assert "asyncio.shield(self._do_commit_offsets(assignment, offsets))" in calls_in(
            GroupCoordinator.commit_offsets
        )
        assert list(inspect.signature(GroupCoordinator.fetch_committed_offsets).parameters) == ["self", "partitions"]
    finally:
        await consumer.stop()
    assert await committed_offsets(None, []) == {}


def test_the_coordinator_asks_the_subscription_for_its_listener_each_time():
    """A listener that is replaced after `subscribe` is called at the next rebalance."""
    assert "listener" in names_in(GroupCoordinator._on_join_prepare)
    assert "listener" in names_in(GroupCoordinator._on_join_complete)


async def test_a_producer_can_be_made_with_what_the_consumers_of_the_broker_are_made_with():
    """`_outer_config.builder` is a partial of the consumer; all of its options but two are a producer's as well."""
    broker = KafkaBroker("somewhere:9092", client_id="ours", request_timeout_ms=2345)
    subscriber = broker.subscriber("topic", group_id="group")
    assert isinstance(subscriber._outer_config.builder, functools.partial)
    assert subscriber._outer_config.builder.func is AIOKafkaConsumer
    producer = make_producer(subscriber)
    try:
        assert producer.client._bootstrap_servers in ("somewhere:9092", ["somewhere:9092"])
        assert producer.client._client_id == "ours"
        assert producer.client._request_timeout_ms == 2345
    finally:
        await producer.stop()


async def test_the_context_of_a_pass_has_a_log_context_that_can_be_added_to():
    """`attempt` is added to FastStream's log lines by it, and passed to handlers by `set_local`."""
    seen = []

    class Adds(BaseMiddleware):
        @override
        async def consume_scope(self, call_next, msg):
            self.context.get_local("log_context")["attempt"] = 3
            self.context.set_local("kafka_attempt", 3)
            return await call_next(msg)

    broker = KafkaBroker(logger=None, middlewares=[Adds])

    async def handle(
        attempt: Annotated[int, Context("kafka_attempt")], logged: Annotated[int, Context("log_context.attempt")]
    ) -> None:
        seen.append((attempt, logged))

    broker.subscriber("topic")(handle)
    async with TestKafkaBroker(broker) as test_broker:
        await test_broker.publish(b"x", "topic")
    assert seen == [(3, 3)]


def test_records_are_dataclasses_that_can_be_copied():
    """`dataclasses.replace` can remove an unreadable header from a copy of a record."""
    record = ConsumerRecord("t", 0, 5, 1, 0, None, b"x", None, 0, 1, (("a", b"1"),))
    assert dataclasses.replace(record, headers=()).headers == ()


def test_topic_partitions_are_found_by_plain_tuples():
    """Ledgers are looked up by `(topic, partition)`, which must hash and compare like a TopicPartition."""
    assert {TopicPartition("t", 1): "found"}[("t", 1)] == "found"  # ty: ignore[invalid-argument-type]


async def fails(*_args):
    raise LookupError


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("place", ["parser", "decoder", "filter", "handler", "another's decoder"])
async def test_where_a_record_could_not_be_read_is_seen_in_the_traceback(place, batch):
    """`is_suitable(msg)` parses and filters, `StreamMessage.decode` of a message with that `raw_message` decodes."""
    broker = KafkaBroker(logger=None)

    async def handle():
        if place == "another's decoder":
            await other.decode()
        raise LookupError

    other = KafkaMessage(raw_message="another", body=b"", consumer=FAKE_CONSUMER)
    other.set_decoder(fails)
    options = {place: fails} if place in {"parser", "decoder", "filter"} else {}
    subscriber = broker.subscriber("topic", batch=batch)
    subscriber(handle, **options)
    record = ConsumerRecord("topic", 0, 5, 1, 0, None, b"x", None, 0, 1, ())
    raw = (record,) if batch else record
    async with TestKafkaBroker(broker):
        with pytest.raises(LookupError) as raised:
            await subscriber.process_message(raw)
    assert is_unreadable(raised.value, raw) == bool(options)
    assert not is_unreadable(raised.value, dataclasses.replace(record))


class UnreadableError(Exception):
    """An error whose text can't be read; FastStream formats it into a log line."""

    @override
    def __str__(self):
        raise LookupError


@pytest.mark.parametrize("error", [ValueError, BaseException, UnreadableError])
async def test_faststream_logs_what_comes_out_of_a_pass(error):
    """Any error, with its traceback, if its text can be read. `TestKafkaBroker` has its own logger."""
    broker = KafkaBroker()
    subscriber = broker.subscriber("topic")

    @subscriber
    async def handle():
        raise error

    record = ConsumerRecord("topic", 0, 5, 1, 0, None, b"x", None, 0, 1, ())
    async with TestKafkaBroker(broker):
        logger: Any = broker.config.logger.logger.logger
        with pytest.raises(BaseException) as raised:  # noqa: PT011 - whatever it is
            await subscriber.process_message(record)
        has_logged = any(line.kwargs["exc_info"] is raised.value for line in logger.log.call_args_list)
        assert has_logged == (error is not UnreadableError)
        assert logs_failures(subscriber, raised.value) == has_logged


@pytest.mark.parametrize("logger", [None, logging.getLogger("test.loud")], ids=["silent", "loud"])
def test_faststreams_logger_is_found(logger):
    """`LoggerState.logger.logger` is what a broker was given, from its start on."""
    broker = KafkaBroker(logger=logger)
    subscriber = broker.subscriber("topic")
    broker._setup_logger()
    assert logs_failures(subscriber, ValueError()) == (logger is not None)


async def test_the_fetch_of_a_subscriber_without_batches_is_that_of_its_consumer():
    """Nothing else is done by FastStream's `get_msg`, so that it need not be called."""

    class Consumer:
        async def getone(self):
            return "a record"

    consumer: Any = Consumer()
    subscriber: Any = KafkaBroker().subscriber("topic")
    assert await subscriber.get_msg(consumer) == await plain_fetch(subscriber.get_msg)(consumer) == "a record"
    batches = KafkaBroker().subscriber("topic", batch=True)
    assert plain_fetch(batches.get_msg) == batches.get_msg
    subscriber.get_msg = consumer.getone
    assert plain_fetch(subscriber.get_msg) == subscriber.get_msg
