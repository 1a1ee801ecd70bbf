"""The interface of a Kafka server for tests, and a server that was started outside the tests."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import ClassVar, Self

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from typing_extensions import override


__all__ = ["BrokerError", "External", "KafkaServer", "wait_ready"]


class BrokerError(Exception):
    """A broker could not be started: a problem of this machine's set-up, not of the code under test."""


class KafkaServer(ABC):
    """One or more brokers to run against, from start() to stop()."""

    name: ClassVar[str]
    full: bool = True
    """Whether it supports everything of Kafka that the tests use; Tansu does not."""

    @property
    @abstractmethod
    def bootstrap_servers(self) -> list[str]:
        """`host:port` of each broker, whether it is alive or not."""

    @abstractmethod
    def start(self) -> None:
        """Start it and return when every broker answers; raises BrokerError when it does not come up."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it and delete its data. Idempotent; also allowed after a failed start."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class External(KafkaServer):
    """A Kafka that runs already, and is neither configured nor stopped here."""

    name = "external"

    def __init__(self, bootstrap_servers: Sequence[str], *, full: bool = True) -> None:
        self._bootstrap_servers = list(bootstrap_servers)
        self.full = full

    @property
    @override
    def bootstrap_servers(self) -> list[str]:
        return list(self._bootstrap_servers)

    @override
    def start(self) -> None:
        wait_ready(self._bootstrap_servers, brokers=1, timeout_sec=30)

    @override
    def stop(self) -> None:
        """Do nothing: the server was started outside the tests."""


def wait_ready(
    bootstrap_servers: Sequence[str],
    *,
    brokers: int,
    give_up: Callable[[], str | None] = lambda: None,
    timeout_sec: float = 60,
) -> None:
    """Return when each server knows `brokers` brokers or more, and the groups' coordinator answers.

    Raises BrokerError after `timeout_sec` seconds, or as soon as `give_up` returns a reason.
    """
    # In a thread with its own event loop: a test restarts a broker while the test's loop runs.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _ready(bootstrap_servers, brokers, give_up, timeout_sec)).result()


async def _ready(servers: Sequence[str], brokers: int, give_up: Callable[[], str | None], timeout_sec: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_sec
    last: BaseException | str = "no connection"
    waiting = list(servers)
    while waiting:
        if (reason := give_up()) is not None:
            raise BrokerError(reason)
        if loop.time() > deadline:
            raise BrokerError(f"{waiting} not ready within {timeout_sec} s: {last!r}")
        try:
            async with asyncio.timeout(5):
                last = await _complaint(waiting[0], brokers)
        except (KafkaError, OSError, TimeoutError) as error:
            last = error
        if last:
            await asyncio.sleep(0.05)
        else:
            waiting.pop(0)


async def _complaint(server: str, brokers: int) -> str:
    """Ask one server; return what is missing yet, or nothing."""
    # A bare connection first, because aiokafka logs an error for each attempt at a port without a listener.
    host, _, port = server.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    admin = AIOKafkaAdminClient(bootstrap_servers=[server], request_timeout_ms=4_000)
    try:
        await admin.start()
        known = (await admin.describe_cluster())["brokers"]
        if len(known) < brokers:
            return f"{server} knows {len(known)} of {brokers} brokers"
        # The first request for a coordinator creates the topic of offsets, for which no test should have to wait.
        await admin.find_coordinator("readiness")
    finally:
        await admin.close()
    return ""
