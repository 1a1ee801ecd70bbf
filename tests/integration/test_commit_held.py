"""Commits that are in flight when a rebalance begins: refused for a moment, or never answered (I3, I11)."""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import GroupLoadInProgressError, IllegalGenerationError, NotCoordinatorForGroupError
from aiokafka.protocol.commit import OffsetCommitRequest_v3, OffsetCommitResponse_v3
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import KafkaConcurrentProcessingMiddleware
from testkit.brokers import ApacheKafka, create_topic, wait_until
from testkit.brokers.apache import java_and_maven_answer
from tests.integration.helpers import PATIENCE_SEC, Cluster, Rebalances, serving
from tests.integration.rebalancing import (
    LEAVES_IT,
    TAKES_IT,
    Held,
    until_rebalances,
    visit,
    watching_offsets,
)
from tests.integration.test_rebalance import QUICK


pytestmark = [pytest.mark.cluster]

PASS, NEVER_SENT, NEVER_ANSWERED = "pass", "never sent", "never answered"
# The broker's errors while a group's offsets are loaded or moved: aiokafka retries for ever.
RETRIED = [GroupLoadInProgressError, NotCoordinatorForGroupError]
# The time of the revoke's commit when the drain has used up its own.
COMMIT_SEC = 1.0
DRAIN_SEC = 0.5
HEARTBEAT_SEC = 0.2
SLACK_SEC = 1.0


class Commit(NamedTuple):
    """A commit request of a client."""

    generation: int
    offsets: dict[int, int]
    frame: bytes


class Proxy:
    """A proxy between client and broker that holds back commits, or their answers."""

    def __init__(self, broker: str) -> None:
        self._host, _, port = broker.rpartition(":")
        self._port = int(port)
        self._own_port = 0
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self.commits: list[Commit] = []
        self.treatment: str | type[Any] = PASS
        self.is_up = asyncio.Event()
        self.is_up.set()

    @property
    def bootstrap_servers(self) -> list[str]:
        """The address to connect to."""
        return [f"{self._host}:{self._own_port}"]

    async def until_commits(self, count: int) -> None:
        """Wait until the client has sent so many commits."""
        await wait_until(lambda: len(self.commits) >= count, PATIENCE_SEC, lambda: f"{count}: {self.commits}")

    @asynccontextmanager
    async def serving(self):
        """Accept connections until the end of the block."""
        server = await asyncio.start_server(self._serve, self._host, 0)
        self._own_port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.is_up.set()
            for writer in self._connections.values():
                writer.close()
            await asyncio.gather(*self._connections)

    async def deliver(self, commit: Commit) -> int:
        """Send a commit to the broker late, like a packet that was long on its way; return the broker's answer."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            await _write(writer, commit.frame)
            answer = OffsetCommitResponse_v3.decode((await _read(reader))[4:])
        finally:
            writer.close()
        ((_, ((_, code),)),) = answer.get_item("topics")
        return int(code)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)
        from_broker, to_broker = await asyncio.open_connection(self._host, self._port)
        # Answers have to be sent in the order of the requests: awaitables of the answers.
        answers: asyncio.Queue[Callable[[], Awaitable[bytes]]] = asyncio.Queue()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._take_requests(reader, to_broker, from_broker, answers))
                both.create_task(self._give_answers(answers, writer))
        except* (OSError, EOFError):
            pass  # client or broker has closed the connection
        finally:
            writer.close()
            to_broker.close()

    async def _take_requests(self, reader, to_broker, from_broker, answers) -> None:
        while True:
            frame = await _read(reader)
            await self.is_up.wait()
            treatment = self._treatment_of(frame)
            if isinstance(treatment, bytes):
                answers.put_nowait(lambda answer=treatment: asyncio.sleep(0, answer))
                continue
            answers.put_nowait((lambda: _read(from_broker)) if treatment == PASS else asyncio.Event().wait)
            if treatment != NEVER_SENT:
                await _write(to_broker, frame)

    async def _give_answers(self, answers, writer) -> None:
        # Replaces the broker's own address in its answers by the proxy's.
        own_address, broker_address = (self._host.encode() + port.to_bytes(4) for port in (self._own_port, self._port))
        while True:
            answer = await (await answers.get())()
            await self.is_up.wait()
            await _write(writer, answer.replace(broker_address, own_address))

    def _treatment_of(self, frame: bytes) -> str | bytes:
        """Return an awaitable of the answer to a request."""
        if int.from_bytes(frame[:2]) != OffsetCommitRequest_v3.API_KEY:
            return PASS
        # The client id follows the API key, the version and the correlation id.
        asked = OffsetCommitRequest_v3.decode(frame[10 + int.from_bytes(frame[8:10]) :])
        _, generation, _, _, topics = (asked.get_item(name) for name in asked.SCHEMA.names)
        offsets = {partition: offset for _, partitions in topics for partition, offset, _ in partitions}
        if not any(offsets.values()):
            # The commit at the assignment: no record has finished.
            return PASS
        self.commits.append(Commit(generation, offsets, frame))
        treatment = self.treatment
        if isinstance(treatment, str):
            self.treatment = PASS
            return treatment
        refused = [(topic, [(partition, treatment.errno) for partition, *_ in each]) for topic, each in topics]
        return frame[4:8] + OffsetCommitResponse_v3(0, refused).encode()


async def _read(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4)))


async def _write(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(len(frame).to_bytes(4) + frame)
    await writer.drain()


@pytest.fixture(scope="module")
def server():
    """An Apache Kafka."""
    if not java_and_maven_answer():
        pytest.skip("a broker behind a proxy needs java >= 17 and mvn")
    with ApacheKafka() as server:
        yield server


@pytest.fixture
def cluster(server):
    """The broker itself, without the proxy."""
    return Cluster(server.bootstrap_servers)


@pytest.fixture
async def proxy(server):
    """The proxy to the broker."""
    async with Proxy(*server.bootstrap_servers).serving() as proxy:
        yield proxy


async def topic_of(cluster, partitions):
    """Make a topic."""
    await create_topic(cluster.bootstrap_servers, name := f"held-{uuid4().hex}", partitions)
    return name


def broker_behind(proxy, **more: Any):
    """Return a KafkaBroker whose commits go through the proxy."""
    return KafkaBroker(proxy.bootstrap_servers, middlewares=[KafkaConcurrentProcessingMiddleware], logger=None, **more)


@asynccontextmanager
async def taken_over(cluster, topic, rebalances):
    """Partition 0 goes to a new owner, which finds 5 committed, handles the records up to 19, and commits them."""
    async with visit(cluster, topic, None, TAKES_IT) as owner:
        partition = TopicPartition(topic, 0)
        await wait_until(
            lambda: rebalances.assigned[-1] == [TopicPartition(topic, 1)], PATIENCE_SEC, "partition 0 is gone"
        )
        await cluster.send(topic, range(10, 20), 0)
        taken = []
        async with asyncio.timeout(PATIENCE_SEC):
            while len(taken) < 15:
                taken += [
                    record.offset for record in (await owner.getmany(partition, timeout_ms=100)).get(partition, [])
                ]
                await owner.commit({partition: await owner.position(partition)})
        assert taken == list(range(5, 20))
        yield


@pytest.mark.parametrize("refusal", RETRIED)
async def test_a_commit_that_is_being_retried_is_not_sent_under_the_new_generation(cluster, proxy, refusal):
    """The new owner's offset does not go back, and the next commits are those of the new generation."""
    topic, held = await topic_of(cluster, 2), Held(5, 8)
    held.subscribe(broker := broker_behind(proxy), topic)
    await cluster.send(topic, range(10), 0)
    settings = {"rebalance_flush_timeout_sec": 0.2, "commit_batch_timeout_sec": 0.05}
    async with serving(broker, **settings), watching_offsets(cluster, topic) as offsets:
        await held.until_started(5, 8)
        await cluster.until_committed(topic, {0: 5})
        seen, proxy.treatment = len(proxy.commits), refusal
        held.held[5].set()
        await proxy.until_commits(seen + 3)
        async with taken_over(cluster, topic, held.rebalances):
            proxy.treatment = PASS
            held.let_go()
            await held.until_ended(8)
            for number in (100, 101):
                # A commit that is sent after all others, so an earlier one that waited would have been sent by now.
                await cluster.send(topic, [number], 1)
                await cluster.until_committed(topic, {0: 20, 1: number - 99})
        await wait_until(lambda: len(held.rebalances.assigned[-1]) == 2, PATIENCE_SEC, "it is back")
        await cluster.send(topic, [20], 0)
        await cluster.until_committed(topic, {0: 21, 1: 2})
        await wait_until(lambda: offsets[-1] == 21, PATIENCE_SEC, "it is seen")
    assert offsets == sorted(offsets)
    assert {commit.generation for commit in proxy.commits if commit.offsets.get(0) == 8} == {
        proxy.commits[0].generation
    }
    assert held.runs == dict.fromkeys([*range(10), 20, 100, 101], 1)


@pytest.mark.parametrize("refusal", RETRIED)
async def test_the_same_commit_by_a_bare_consumer_moves_the_offset_back(cluster, proxy, refusal):
    """The premise of the test above: aiokafka sends the commit under the new generation, and the broker accepts it."""
    topic, rebalances = await topic_of(cluster, 2), Rebalances()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=proxy.bootstrap_servers, group_id=f"{topic}-group", enable_auto_commit=False, **QUICK
    )
    consumer.subscribe([topic], listener=rebalances)
    await cluster.send(topic, range(10), 0)
    await consumer.start()
    try:
        await until_rebalances(rebalances, 1)
        await consumer.commit({TopicPartition(topic, 0): 5})
        proxy.treatment = refusal
        committing = asyncio.create_task(consumer.commit({TopicPartition(topic, 0): 8}))
        await proxy.until_commits(3)
        async with watching_offsets(cluster, topic) as offsets, taken_over(cluster, topic, rebalances):
            await wait_until(lambda: 20 in offsets, PATIENCE_SEC, "the new owner's commit is seen")
            proxy.treatment = PASS
            await committing
            await wait_until(lambda: offsets[-1] == 8, PATIENCE_SEC, lambda: f"it went back: {offsets}")
    finally:
        await consumer.stop()
    assert proxy.commits[-1].generation > proxy.commits[0].generation


@pytest.mark.parametrize("treatment", [NEVER_SENT, NEVER_ANSWERED])
@pytest.mark.parametrize("visitor", [TAKES_IT, LEAVES_IT])
async def test_a_handler_that_ends_while_the_revokes_commit_awaits_its_answer(cluster, proxy, visitor, treatment):
    """Without an answer the partitions still go in time, and no record is run twice or left uncommitted."""
    topic, held = await topic_of(cluster, 1), Held(5)
    loop = asyncio.get_running_loop()
    # aiokafka gives up the connection without an answer after this time.
    held.subscribe(broker := broker_behind(proxy, request_timeout_ms=2000), topic)
    await cluster.send(topic, range(10))

    async def end_meanwhile():
        await proxy.until_commits(1)
        held.let_go()
        await held.until_ended(5)
        await wait_until(lambda: held.rebalances.revoked, PATIENCE_SEC, "the user's listener is called")
        return loop.time()

    # No batch is due: the first commit is the revoke's.
    settings = {"rebalance_flush_timeout_sec": DRAIN_SEC, "commit_batch_timeout_sec": 600}
    async with serving(broker, **settings), watching_offsets(cluster, topic) as offsets:
        await held.until_ended(*range(5), *range(6, 10))
        proxy.treatment, began = treatment, loop.time()
        ending = asyncio.create_task(end_meanwhile())
        async with visit(cluster, topic, held.rebalances, visitor):
            stood_still_sec = await ending - began
            assert DRAIN_SEC + COMMIT_SEC <= stood_still_sec < DRAIN_SEC + COMMIT_SEC + HEARTBEAT_SEC + SLACK_SEC
            assert await proxy.deliver(proxy.commits[0]) == IllegalGenerationError.errno
        await cluster.send(topic, [10, 11])
        await held.until_ended(10, 11)
    assert proxy.commits[0].offsets == {0: 5}
    assert await cluster.committed(topic) == {0: 12}
    assert offsets == sorted(offsets)
    assert held.runs == dict.fromkeys(range(12), 1)


@pytest.mark.parametrize("commit_batch_timeout_sec", [0.05, 600])
async def test_who_was_cut_off_does_not_move_the_offset_back(cluster, proxy, commit_batch_timeout_sec):
    """Another owner came and left meanwhile: the group is empty, so the broker accepts commits of any client."""
    topic, held = await topic_of(cluster, 2), Held(5, 8)
    held.subscribe(broker := broker_behind(proxy), topic, session_timeout_ms=1500)
    await cluster.send(topic, range(10), 0)
    settings = {"rebalance_flush_timeout_sec": 0.2, "commit_batch_timeout_sec": commit_batch_timeout_sec}
    async with serving(broker, **settings), watching_offsets(cluster, topic) as offsets:
        await held.until_started(5, 8)
        if commit_batch_timeout_sec == 0.05:
            await cluster.until_committed(topic, {0: 5})
        proxy.is_up.clear()
        held.held[5].set()
        await held.until_ended(5)
        async with visit(cluster, topic, None, TAKES_IT) as owner:
            partition = TopicPartition(topic, 0)
            await wait_until(lambda: partition in owner.assignment(), PATIENCE_SEC, "the new owner has it")
            await owner.commit({partition: 10})
        proxy.is_up.set()
        await until_rebalances(held.rebalances, 2)
        await cluster.send(topic, [10], 0)
        await held.until_ended(10)
        held.let_go()
    assert await cluster.committed(topic) == {0: 11}
    assert offsets == sorted(offsets), offsets


async def test_a_commit_that_is_given_up_is_not_complained_about(cluster, proxy, caplog):
    """aiokafka's request fails later, when nothing awaits it any more: asyncio does not report that error."""
    topic, held, complaints = await topic_of(cluster, 1), Held(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    caplog.set_level(logging.CRITICAL, "aiokafka")  # or pytest's log records would keep the error
    held.subscribe(broker := broker_behind(proxy, request_timeout_ms=2000), topic)
    await cluster.send(topic, range(10))
    async with serving(broker, rebalance_flush_timeout_sec=0, commit_batch_timeout_sec=600):
        await held.until_ended(*range(10))
        proxy.treatment = NEVER_SENT
        async with visit(cluster, topic, held.rebalances, LEAVES_IT):
            assert proxy.commits[0].offsets == {0: 10}
    gc.collect()
    assert complaints == []
