import asyncio
import os
import subprocess
import sys
from itertools import product
from uuid import uuid4

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from testkit.brokers import (
    BrokerError,
    External,
    Record,
    Tansu,
    committed,
    decide,
    end_offsets,
    group_members,
    produce,
    wait_until,
)
from testkit.brokers.process import Process, free_ports
from testkit.brokers.server import wait_ready


RECORDS = [
    Record(b"plain"),
    Record(b"keyed", key=b"k"),
    Record(b"headed", headers=[("trace", b"\xff\x00")]),
    Record(b"placed", partition=2),
    Record(None, key=b"tombstone"),
]


async def read_all(bootstrap, topic, count, group=None):
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        found = [await consumer.getone() for _ in range(count)]
        if group is not None:
            await consumer.commit()
        return found
    finally:
        await consumer.stop()


def gone(process):
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class TestDecision:
    ENVIRONS = ({}, {"KAFKA_BOOTSTRAP_SERVERS": "there:9092"})

    @pytest.mark.parametrize(
        ("addresses", "docker", "java", "expected"),
        [
            ("there:9092", True, True, "external"),
            ("", True, True, "redpanda"),
            ("", True, False, "redpanda"),
            ("", False, True, "apache-kafka"),
            ("", False, False, "tansu"),
        ],
    )
    def test_what_is_given_comes_first_then_docker_then_java_then_tansu(self, addresses, docker, java, expected):
        kind, why = decide({"KAFKA_BOOTSTRAP_SERVERS": addresses}, docker=lambda: docker, java=lambda: java)
        assert kind == expected
        assert why

    @pytest.mark.parametrize("forced", ["redpanda", "apache-kafka", "tansu"])
    def test_test_kafka_overrides_everything(self, forced):
        for environ, docker, java in product(self.ENVIRONS, (True, False), (True, False)):
            assert (
                decide(environ | {"TEST_KAFKA": forced}, docker=lambda it=docker: it, java=lambda it=java: it)[0]
                == forced
            )

    @pytest.mark.parametrize("forced", ["kafka", "external"])
    def test_a_name_that_cannot_be_meant_is_an_error_that_says_what_is_allowed(self, forced):
        with pytest.raises(ValueError, match=rf"TEST_KAFKA='{forced}'.*redpanda.*KAFKA_BOOTSTRAP_SERVERS"):
            decide({"TEST_KAFKA": forced}, docker=lambda: True, java=lambda: True)

    def test_docker_and_java_are_asked_only_when_it_matters(self):
        def unasked():
            raise AssertionError

        assert decide({"KAFKA_BOOTSTRAP_SERVERS": "there:9092"}, docker=unasked, java=unasked)[0] == "external"
        assert decide({}, docker=lambda: True, java=unasked)[0] == "redpanda"


class TestTheRunsKafka:
    async def test_records_come_back_as_they_were_produced(self, kafka, new_topic):
        topic = await new_topic(3)
        sent = await produce(kafka.bootstrap_servers, topic, RECORDS)
        found = {
            (each.partition, each.offset): each for each in await read_all(kafka.bootstrap_servers, topic, len(RECORDS))
        }
        for record, metadata in zip(RECORDS, sent, strict=True):
            back = found[metadata.partition, metadata.offset]
            assert (back.value, back.key, list(back.headers)) == (record.value, record.key, list(record.headers or []))
        assert sent[3].partition == 2

    @pytest.mark.apache
    async def test_end_offsets_are_those_of_the_next_records(self, kafka, new_topic):
        topic = await new_topic(2)
        await produce(kafka.bootstrap_servers, topic, [Record(b"x", partition=1)] * 5)
        assert await end_offsets(kafka.bootstrap_servers, topic) == {0: 0, 1: 5}

    async def test_committed_offsets_can_be_read_and_partitions_without_any_are_absent(self, kafka, new_topic):
        topic, group = await new_topic(3), uuid4().hex
        assert await committed(kafka.bootstrap_servers, group, topic) == {}
        await produce(kafka.bootstrap_servers, topic, [Record(b"x", partition=1)] * 5)
        await read_all(kafka.bootstrap_servers, topic, 5, group)
        assert await committed(kafka.bootstrap_servers, group, topic) == {1: 5}

    async def test_a_group_has_a_member_while_a_consumer_is_in_it(self, kafka, new_topic):
        topic, group = await new_topic(), uuid4().hex
        assert await group_members(kafka.bootstrap_servers, group) == 0
        async with AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap_servers, group_id=group):
            assert await group_members(kafka.bootstrap_servers, group) == 1

    @pytest.mark.apache
    async def test_a_group_has_no_member_once_its_consumer_has_stopped(self, kafka, new_topic):
        topic, group = await new_topic(), uuid4().hex
        async with AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap_servers, group_id=group):
            pass
        assert await group_members(kafka.bootstrap_servers, group) == 0

    @pytest.mark.apache
    async def test_commit_metadata_and_idempotent_producers_work_on_a_full_kafka(self, kafka, new_topic):
        topic, group = await new_topic(), uuid4().hex
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, enable_idempotence=True) as producer:
            await producer.send_and_wait(topic, b"x")
        async with AIOKafkaConsumer(
            topic, bootstrap_servers=kafka.bootstrap_servers, group_id=group, enable_auto_commit=False
        ) as consumer:
            await consumer.commit({TopicPartition(topic, 0): (1, "note")})
        assert await committed(kafka.bootstrap_servers, group, topic) == {0: 1}


@pytest.mark.cluster
class TestBrokersOfOnesOwn:
    async def test_what_was_produced_is_still_read_while_a_broker_of_three_is_dead_and_after_its_restart(
        self, own_kafka, new_topic
    ):
        cluster = own_kafka(3)
        bootstrap = cluster.bootstrap_servers
        assert len(set(bootstrap)) == 3
        topic = await new_topic(6, bootstrap=bootstrap)
        await produce(bootstrap, topic, [Record(str(index).encode()) for index in range(100)])

        cluster.kill(0)
        assert [cluster.alive(index) for index in range(3)] == [False, True, True]
        values = {each.value for each in await read_all(bootstrap[1:], topic, 100)}
        await produce(bootstrap[1:], topic, [Record(b"meanwhile")])

        cluster.restart(0)
        assert cluster.alive(0)
        assert cluster.bootstrap_servers == bootstrap
        assert {each.value for each in await read_all(bootstrap[:1], topic, 101)} == values | {b"meanwhile"}

    async def test_a_single_broker_killed_and_restarted_keeps_records_and_commits(self, own_kafka, new_topic):
        server = own_kafka()
        topic = await new_topic(bootstrap=server.bootstrap_servers)
        await produce(server.bootstrap_servers, topic, [Record(b"x")] * 3)
        await read_all(server.bootstrap_servers, topic, 3, "group")

        server.kill(0)
        server.restart(0)
        assert await end_offsets(server.bootstrap_servers, topic) == {0: 3}
        assert await committed(server.bootstrap_servers, "group", topic) == {0: 3}

    async def test_a_paused_broker_is_silent_until_it_is_resumed(self, own_kafka, new_topic):
        server = own_kafka()
        topic = await new_topic(bootstrap=server.bootstrap_servers)
        async with AIOKafkaProducer(bootstrap_servers=server.bootstrap_servers) as producer:
            await producer.send_and_wait(topic, b"connected")
            server.pause(0)
            answer = await producer.send(topic, b"x")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await asyncio.shield(answer)
            assert server.alive(0)
            server.resume(0)
            assert (await answer).offset == 1

    def test_a_broker_that_does_not_come_up_says_why_and_leaves_nothing_behind(self, own_kafka):
        before = set(psutil.Process().children())
        with pytest.raises(BrokerError, match=r"num\.partitions"):
            own_kafka(settings={"num.partitions": "none"})
        assert {each for each in psutil.Process().children() if each not in before and "java" in each.name()} == set()


class TestTansu:
    async def test_it_comes_back_empty_on_the_same_port(self):
        with Tansu() as tansu:
            where = tansu.bootstrap_servers
            await produce(where, "topic", [Record(b"x")])
            assert sum((await end_offsets(where, "topic")).values()) == 1
            tansu.kill()
            assert not tansu.alive
            tansu.restart()
            assert tansu.alive
            assert tansu.bootstrap_servers == where
            assert sum((await end_offsets(where, "topic")).values()) == 0
        assert not tansu.alive


class TestProcess:
    SLEEPER = (sys.executable, "-c", "import threading; print('up', flush=True); threading.Event().wait()")

    async def test_it_starts_again_after_it_was_killed_and_keeps_its_log(self, tmp_path):
        process = Process(self.SLEEPER, tmp_path / "log")
        for said in ("up", "up\nup"):
            process.start()
            await wait_until(lambda said=said: process.log_tail() == said, 10, process.log_tail)
            assert process.alive
            process.kill()
            assert not process.alive
        process.kill()

    def test_it_is_killed_when_the_process_that_started_it_is_killed(self, tmp_path):
        starter = """if True:
            import pathlib, sys, threading
            from testkit.brokers.process import Process
            process = Process(sys.argv[2:], pathlib.Path(sys.argv[1]))
            process.start()
            print(process.pid, flush=True)
            threading.Event().wait()
        """
        with subprocess.Popen(
            [sys.executable, "-c", starter, tmp_path / "log", *self.SLEEPER], stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            orphan = psutil.Process(int(parent.stdout.readline()))
            assert orphan.is_running()
            parent.kill()
        asyncio.run(wait_until(lambda: gone(orphan), 10, str(orphan)))

    def test_free_ports_are_different_and_not_for_outgoing_connections(self):
        ports = free_ports(6)
        assert len(set(ports)) == 6
        assert max(ports) < 32_768


class TestSkipping:
    """In CI, what needs a broker never passes silently. Each runs pytest on one test of this file."""

    FULL = "test_commit_metadata_and_idempotent_producers_work_on_a_full_kafka"
    ROUND_TRIP = "test_records_come_back_as_they_were_produced"
    CLUSTER = "test_a_single_broker_killed_and_restarted_keeps_records_and_commits"

    def run(self, name, **environ):
        hidden = ("CI", "KAFKA_BOOTSTRAP_SERVERS", "TEST_KAFKA")
        inherited = {key: value for key, value in os.environ.items() if key not in hidden}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--no-cov", __file__, "-k", name],
            capture_output=True,
            check=False,
            env=inherited | environ,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    def test_the_header_says_which_kafka_was_taken(self):
        assert "Kafka: tansu (TEST_KAFKA says so)" in self.run("nothing", TEST_KAFKA="tansu")[1]

    def test_what_tansu_lacks_is_skipped_with_the_reason(self):
        code, output = self.run(self.FULL, TEST_KAFKA="tansu")
        assert code == 0, output
        assert "needs more of Kafka than tansu gives" in output

    def test_in_ci_that_skip_is_a_failure(self):
        code, output = self.run(self.FULL, TEST_KAFKA="tansu", CI="true")
        assert code == 1, output
        assert "CI may not skip an integration test. Skipped: needs more of Kafka than tansu gives" in output

    def test_without_java_a_test_that_kills_brokers_is_skipped_and_fails_in_ci(self):
        code, output = self.run(self.CLUSTER, TEST_KAFKA="tansu", PATH="")
        assert code == 0, output
        assert "need java >= 17 and mvn" in output
        code, output = self.run(self.CLUSTER, TEST_KAFKA="tansu", PATH="", CI="true")
        assert code == 1, output

    @pytest.mark.parametrize("ci", ["", "true"])
    def test_a_broker_that_cannot_be_started_is_never_a_skip(self, ci):
        code, output = self.run(self.ROUND_TRIP, TEST_KAFKA="apache-kafka", PATH="", CI=ci)
        assert code == 1, output
        assert "java is not on the PATH" in output

    def test_a_name_that_test_kafka_cannot_mean_ends_the_run(self):
        code, output = self.run(self.ROUND_TRIP, TEST_KAFKA="rabbit")
        assert code == pytest.ExitCode.USAGE_ERROR
        assert "TEST_KAFKA='rabbit'" in output


async def test_wait_until_returns_the_first_true_answer_of_a_function_or_coroutine():
    answers = iter([0, 0, 7])
    assert await wait_until(lambda: next(answers), 5, "seven") == 7

    async def later():
        return "yes"

    assert await wait_until(later, 5, "yes") == "yes"


async def test_wait_until_fails_with_what_was_awaited_and_bounds_a_predicate_that_hangs():
    with pytest.raises(AssertionError, match=r"not within 0.05 s: never"):
        await wait_until(lambda: False, 0.05, "never")
    with pytest.raises(AssertionError, match="state"):
        await wait_until(asyncio.Event().wait, 0.05, lambda: "state")


async def test_wait_until_lets_the_predicates_own_timeout_through():
    def predicate():
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await wait_until(predicate, 5, "unused")


def test_an_external_kafka_that_does_not_answer_is_an_error_with_its_address():
    port = free_ports(1)[0]
    with pytest.raises(BrokerError, match=rf"127.0.0.1:{port}.*not ready within 0.2 s"):
        wait_ready([f"127.0.0.1:{port}"], brokers=1, timeout_sec=0.2)


async def test_an_external_kafka_is_left_running(kafka):
    with External(kafka.bootstrap_servers) as external:
        assert external.bootstrap_servers == kafka.bootstrap_servers
    wait_ready(kafka.bootstrap_servers, brokers=1, timeout_sec=5)
