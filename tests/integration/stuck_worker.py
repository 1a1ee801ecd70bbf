"""A worker with one record that hangs: `python -m tests.integration.stuck_worker PLAN`."""

import asyncio
import json
import sys
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from tests.lines import Appender, die_with_the_starter


def main(plan: dict[str, Any]) -> None:
    """Handle the numbers of a topic, and write each down; one never ends."""
    broker = KafkaBroker(plan["servers"], middlewares=[KafkaConcurrentProcessingMiddleware], logger=None)
    subscriber: Any = broker.subscriber(
        plan["topic"],
        group_id=plan["group"],
        ack_policy=AckPolicy.MANUAL,
        auto_offset_reset="earliest",
        session_timeout_ms=6_000,
    )
    lines = Appender(plan["journal"])

    async def handle(number: int) -> None:
        if number == plan["stuck"]:
            await asyncio.Event().wait()
        lines.write(str(number))

    subscriber(handle)
    app = FastStream(broker, logger=None)

    async def begin() -> None:
        await initialize_concurrent_processing(app.context, **plan["settings"])

    async def end() -> None:
        await stop_concurrent_processing(app.context)

    app.on_startup(begin)
    app.after_shutdown(end)
    asyncio.run(app.run())


if __name__ == "__main__":
    die_with_the_starter()
    main(json.loads(sys.argv[1]))
