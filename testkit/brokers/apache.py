"""Apache Kafka on this machine's Java: one broker or a cluster, whose brokers can be killed and restarted."""

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from typing_extensions import override

from .jars import VERSION, apache_kafka_jars
from .once import made_once
from .process import Process, free_ports
from .server import BrokerError, KafkaServer, wait_ready


__all__ = ["ApacheKafka", "java_and_maven_answer"]

_OLDEST_JAVA = 17  # of Kafka 4's broker
_CLUSTER_ID = "a2Fma2EtZm9yLXRlc3RzIQ"  # any 16 bytes in base64
_JVM = [
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+IgnoreUnrecognizedVMOptions",  # other JVMs keep classes in other ways
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
]


def java_and_maven_answer() -> bool:
    """Whether `java`, recent enough for Kafka, and `mvn` are on the PATH."""
    java = shutil.which("java")
    if java is None or shutil.which("mvn") is None:
        return False
    try:
        asked = subprocess.run([java, "-version"], capture_output=True, check=False, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    # `openjdk version "17.0.15" ...`; before Java 9 it was `"1.8.0_392"`
    found = re.search(r'version "(\d+)', asked.stderr + asked.stdout)
    return found is not None and int(found[1]) >= _OLDEST_JAVA


class ApacheKafka(KafkaServer):
    """`brokers` brokers in KRaft combined mode on loopback ports; broker `i` has the node id `i`.

    A killed broker keeps its data and its ports for restart(). A cluster needs most of its brokers alive.
    `settings` are broker settings on top of, or instead of, those made for quick tests.
    `heap_mb` is the heap of each broker in MB.
    """

    name = "apache-kafka"

    def __init__(self, brokers: int = 1, *, settings: Mapping[str, object] | None = None, heap_mb: int = 512) -> None:
        ports = free_ports(2 * brokers)
        self._ports = ports[:brokers]
        self._controller_ports = ports[brokers:]
        self._settings = dict(settings or {})
        self._heap_mb = heap_mb
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._processes: list[Process] = []

    @property
    @override
    def bootstrap_servers(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self._ports]

    @override
    def start(self) -> None:
        java = shutil.which("java")
        if java is None:
            raise BrokerError("java is not on the PATH: Apache Kafka cannot be started")
        run = [java, *_JVM, f"-Xmx{self._heap_mb}m", "-cp", str(apache_kafka_jars() / "*")]
        self._scratch = tempfile.TemporaryDirectory(prefix="kafka-", ignore_cleanup_errors=True)
        configs = [self._configure(Path(self._scratch.name), index) for index in range(len(self._ports))]
        for index, config in enumerate(configs):
            name = f"formatted-{VERSION}-{index}"
            formatted = made_once(name, functools.partial(_format_storage, run, config))
            shutil.copytree(formatted, _data_of(config))
        run.insert(1, self._classes())
        self._processes = [Process([*run, "kafka.Kafka", str(each)], each.with_suffix(".log")) for each in configs]
        for each in self._processes:
            each.start()
        self._wait_ready()

    @override
    def stop(self) -> None:
        for each in self._processes:
            each.kill()
        self._processes = []
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def alive(self, index: int) -> bool:
        """Whether the process of broker `index` runs; a paused one does."""
        return self._processes[index].alive

    def kill(self, index: int) -> None:
        """Kill broker `index` (SIGKILL), and return when it is gone."""
        self._processes[index].kill()

    def pause(self, index: int) -> None:
        """Freeze broker `index` (SIGSTOP): its sockets stay open, and it does not answer."""
        self._processes[index].pause()

    def resume(self, index: int) -> None:
        """Let the frozen broker `index` go on (SIGCONT)."""
        self._processes[index].resume()

    def restart(self, index: int) -> None:
        """Start the killed broker `index` with its data and its ports; return when all living brokers know it.

        It blocks for some seconds: from a test whose event loop has to go on, call it by `asyncio.to_thread`.
        """
        self._processes[index].start()
        self._wait_ready()

    def _classes(self) -> str:
        # Half of a start is the loading of classes; a Java that cannot read the archive loads them as ever.
        return f"-XX:SharedArchiveFile={made_once(f'classes-{VERSION}.jsa', _archive_classes)}"

    def _wait_ready(self) -> None:
        living = [index for index, each in enumerate(self._processes) if each.alive]

        def give_up() -> str | None:
            for index in living:
                if not self.alive(index):
                    return f"Apache Kafka's broker {index} died while it came up:\n{self._processes[index].log_tail()}"
            return None

        try:
            wait_ready([self.bootstrap_servers[index] for index in living], brokers=len(living), give_up=give_up)
        except BrokerError as error:
            tails = (f"broker {index}:\n{self._processes[index].log_tail()}" for index in living)
            raise BrokerError("\n".join([str(error), *tails])) from error

    def _configure(self, folder: Path, index: int) -> Path:
        copies = min(3, len(self._ports))
        config = folder / f"broker-{index}.properties"
        settings = {
            "process.roles": "broker,controller",
            "node.id": index,
            "controller.quorum.voters": ",".join(
                f"{node}@127.0.0.1:{port}" for node, port in enumerate(self._controller_ports)
            ),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "listeners": f"PLAINTEXT://127.0.0.1:{self._ports[index]},"
            f"CONTROLLER://127.0.0.1:{self._controller_ports[index]}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._ports[index]}",
            "log.dirs": _data_of(config),
            "auto.create.topics.enable": "true",
            "num.partitions": 1,
            "default.replication.factor": copies,
            "offsets.topic.replication.factor": copies,
            "share.coordinator.state.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": 1,
            # From here on: short timeouts for tests, where the defaults are for data centres.
            "broker.session.timeout.ms": 6_000,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1_000,
            "offsets.topic.num.partitions": 8,
            "transaction.state.log.num.partitions": 8,
        } | self._settings
        config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        return config


def _data_of(config: Path) -> Path:
    return config.with_suffix(".data")


def _format_storage(run: list[str], config: Path, folder: Path) -> None:
    """Format the storage of a broker, which takes a Java start, and move it to a folder: a copy does for its likes."""
    command = [*run, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(config)]
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, stdin=subprocess.DEVNULL, text=True, timeout=60
        )
    except subprocess.TimeoutExpired as error:
        raise BrokerError("Apache Kafka's storage was not formatted within 60 s") from error
    if done.returncode != 0:
        raise BrokerError(f"Apache Kafka's storage could not be formatted:\n{done.stdout}{done.stderr}")
    shutil.move(_data_of(config), folder)


class _Archiving(ApacheKafka):
    """Keeps the classes that it has loaded in a file when it comes to an orderly end."""

    def __init__(self, archive: Path) -> None:
        super().__init__()
        self._archive = archive

    @override
    def _classes(self) -> str:
        return f"-XX:ArchiveClassesAtExit={self._archive}"

    def end(self) -> None:
        """End it in good order."""
        for each in self._processes:
            each.terminate()


def _archive_classes(archive: Path) -> None:
    """Archive the classes of a broker, which takes one start; a Java that cannot leaves an empty file."""
    with _Archiving(archive) as server:
        server.end()
    archive.touch()
