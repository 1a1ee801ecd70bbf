"""One member of the group, which does what the script says: `python -m tests.scale.worker`."""

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from typing import Any, Self

from aiokafka import ConsumerRebalanceListener, TopicPartition
from faststream import AckPolicy, ContextRepo, FastStream
from faststream.exceptions import NackMessage
from faststream.kafka import KafkaBroker
from typing_extensions import override

from faststream_concurrent_kafka import (
    Attempt,
    DeadLetter,
    FailurePolicy,
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from tests.lines import die_with_the_starter
from tests.scale.journal import Writer
from tests.scale.script import HANDLER_TIMEOUT_SEC, MAX_ATTEMPTS, Script


_VARIABLE = "SCALE_PLAN"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a test asks of the process, handed over in one environment variable."""

    bootstrap_servers: list[str]
    topic: str
    dead_topic: str
    group: str
    journal: str
    script: dict[str, Any]
    settings: dict[str, Any]

    def environ(self) -> dict[str, str]:
        """Return what the process needs in its environment."""
        return {_VARIABLE: json.dumps(dataclasses.asdict(self)), "PYTHONUNBUFFERED": "1"}

    @classmethod
    def given(cls) -> Self:
        """Return the plan that this process was started with."""
        return cls(**json.loads(os.environ[_VARIABLE]))


class Actor:
    """The handler."""

    def __init__(self, script: Script, journal: Writer) -> None:
        self._script = script
        self._journal = journal

    async def handle(self, number: int, attempt: Attempt) -> None:
        """Do what the script says, and write down when that begins and ends."""
        run = self._journal.start(number, attempt)
        outcome = "beyond its script"
        try:
            does, after_sec = self._script.steps(number)[attempt - 1]
            outcome = "cancelled"
            await asyncio.sleep(after_sec)  # handler
            outcome = does
            await _do(does)
        finally:
            self._journal.end(run, outcome)


async def _do(does: str) -> None:
    match does:
        case "raise":
            raise RuntimeError(does)
        case "time out":
            raise TimeoutError(does)
        case "refuse":
            raise PermissionError(does)
        case "nack":
            raise NackMessage(delay=0.02)
        case "nack later":
            raise NackMessage(delay=0.3)
        case "hang":
            await asyncio.Event().wait()
        case "swallow":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return


class Listener(ConsumerRebalanceListener):
    """Writes down when the library has let go of what it had."""

    def __init__(self, journal: Writer) -> None:
        self._journal = journal

    @override
    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._journal.revoked()

    @override
    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Nothing: what it handles is written down."""


def _new_app(plan: Plan) -> FastStream:
    journal = Writer(plan.journal)
    broker = KafkaBroker(plan.bootstrap_servers, middlewares=[KafkaConcurrentProcessingMiddleware], logger=None)
    subscriber: Any = broker.subscriber(
        plan.topic,
        group_id=plan.group,
        ack_policy=AckPolicy.MANUAL,
        auto_offset_reset="earliest",
        listener=Listener(journal),
        session_timeout_ms=6_000,
        heartbeat_interval_ms=100,
        fetch_max_wait_ms=100,
        max_partition_fetch_bytes=32_000,
    )
    subscriber(Actor(Script(**plan.script), journal).handle)
    policy = FailurePolicy(
        max_attempts=MAX_ATTEMPTS,
        first_backoff_sec=0.05,
        max_backoff_sec=0.08,
        never_retry=PermissionError,
        then=DeadLetter(plan.dead_topic),
    )

    @asynccontextmanager
    async def lifespan(context: ContextRepo) -> AsyncGenerator[None]:
        await initialize_concurrent_processing(
            context,
            ordering=plan.script["ordering"],
            on_failure=policy,
            handler_timeout_sec=HANDLER_TIMEOUT_SEC,
            **plan.settings,
        )
        try:
            yield
        finally:
            await stop_concurrent_processing(context)

    return FastStream(broker, lifespan=lifespan, logger=None)


if __name__ == "__main__":
    die_with_the_starter()
    asyncio.run(_new_app(Plan.given()).run())
