"""The service under test: its records say how long the handler takes, and what it does at its end."""

import asyncio
import resource
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from faststream.exceptions import StopApplication, StopConsume
from faststream.kafka import KafkaBroker
from faststream.middlewares import AckPolicy

from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from testkit.journal import CANCELLED, Place, Writer
from tests.stop.apps.requests import REQUESTS
from tests.stop.plan import Plan


plan = Plan.given()
journal = Writer(plan.journal)
_requests: set[asyncio.Task[None]] = set()
leave = asyncio.Event()


def leave_no_core() -> None:
    """Leave no core behind when SIGQUIT stops the process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def subscribe(broker: KafkaBroker, subscriber: Callable[..., Any] | None = None) -> None:
    """Declare the subscribers on the broker, or on the object that wraps it."""
    for topic in (plan.topic, plan.second_topic):
        if topic is not None:
            (subscriber or broker.subscriber)(
                topic,
                group_id=plan.group,
                ack_policy=AckPolicy.ACK_FIRST if plan.where == "nowhere" else AckPolicy.MANUAL,
                auto_offset_reset="earliest",
                session_timeout_ms=6_000,
                heartbeat_interval_ms=100,
            )(Handler(broker).handle)


class Handler:
    """The handlers."""

    def __init__(self, broker: KafkaBroker) -> None:
        self.broker = broker

    async def handle(self, work: dict[str, Any]) -> None:
        """Do what the record says, and write its beginning and end to the journal."""
        raw = self.broker.context.get_local("message").raw_message
        run = journal.starts(Place(raw.topic, raw.partition, raw.offset))
        try:
            if "signal" in work:
                signal.raise_signal(signal.Signals[work["signal"]])
            await asyncio.sleep(min(work["seconds"], plan.longest_sec))  # handler
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)  # handler: it cleans up, and the code that cancels it has to wait for that
            journal.ends(run, CANCELLED)
            raise
        journal.ends(run)
        match work.get("then"):
            case "StopConsume":
                raise StopConsume
            case "StopApplication":
                raise StopApplication
            case "SystemExit":
                raise SystemExit


def new_broker() -> KafkaBroker:
    """Return the broker with its subscribers."""
    broker = KafkaBroker(plan.bootstrap_servers, middlewares=middlewares(), logger=None)
    subscribe(broker)
    return broker


def middlewares() -> list[type[KafkaConcurrentProcessingMiddleware]]:
    """Return the middlewares of the broker."""
    return [] if plan.where == "nowhere" else [KafkaConcurrentProcessingMiddleware]


async def initialize(broker: KafkaBroker, explicit: KafkaBroker | None = None) -> None:
    """Initialise concurrent processing, as a lifespan or a start hook does."""
    loop = asyncio.get_running_loop()

    def begin_request() -> None:
        request = loop.create_task(_serve(broker), name="request")
        _requests.add(request)

    loop.add_signal_handler(signal.SIGUSR1, begin_request)
    if plan.own_handlers.endswith("before"):
        _install_own_handler(loop)
    if plan.where != "nowhere":
        await initialize_concurrent_processing(broker.context, broker=explicit, **plan.settings)
    if plan.own_handlers.endswith("after"):
        _install_own_handler(loop)


def _install_own_handler(loop: asyncio.AbstractEventLoop) -> None:
    if plan.own_handlers.startswith("loop"):

        def on_term_in_loop() -> None:
            journal.notes("own SIGTERM")
            leave.set()

        loop.add_signal_handler(signal.SIGTERM, on_term_in_loop)
        return
    previous = signal.getsignal(signal.SIGTERM)

    def on_term(number: int, frame: Any) -> None:
        journal.notes("own SIGTERM")
        if callable(previous):
            previous(number, frame)
        else:
            loop.call_soon_threadsafe(leave.set)

    signal.signal(signal.SIGTERM, on_term)


async def _serve(broker: KafkaBroker) -> None:
    try:
        await REQUESTS[plan.on_request](broker)
    except Exception as error:
        journal.notes(f"request failed: {error!r}")
        raise
    finally:
        journal.notes("request done")
        leave.set()


async def end(broker: KafkaBroker) -> None:
    """Stop concurrent processing, as a lifespan or a stop hook does."""
    if plan.where != "nowhere":
        await stop_concurrent_processing(broker.context)
    note_tasks()


@asynccontextmanager
async def lifetime(broker: KafkaBroker, explicit: KafkaBroker | None = None) -> AsyncGenerator[None]:
    """Initialise, and stop at the end of the block, as a lifespan does."""
    await initialize(broker, explicit)
    try:
        yield
    finally:
        await end(broker)


def note_tasks() -> None:
    """Write the tasks of the library, of FastStream's subscribers and of aiokafka's consumers that are left."""
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and _is_of_kafka(task)]
    journal.notes(f"tasks left: {sorted(task.get_name() + ' ' + repr(task.get_coro()) for task in left)}")


def _is_of_kafka(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    where = Path(code.co_filename).as_posix() if code else ""
    return any(package in where for package in ("faststream_concurrent_kafka", "aiokafka/consumer", "faststream/kafka"))
