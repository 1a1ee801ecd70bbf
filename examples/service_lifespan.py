"""A FastStream service that handles 100 purchases at once.

    KAFKA_BOOTSTRAP_SERVERS=localhost:9092 python examples/service_lifespan.py

Every purchase on the topic `purchases` is charged, and a receipt goes to `purchase-receipts`. Stop it with Ctrl+C or
SIGTERM: it finishes what it has begun, commits, and leaves. Try it in the middle of a load: the next start repeats
nothing.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from faststream import AckPolicy, ContextRepo, FastStream
from faststream.kafka import KafkaBroker
from pydantic import BaseModel

from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)


class Purchase(BaseModel):
    """What arrives."""

    purchase_id: str
    amount_cents: int


class Receipt(BaseModel):
    """A published message."""

    purchase_id: str
    charged_cents: int


broker = KafkaBroker(
    # A list, because FastStream does not split a string at commas.
    os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092").split(","),
    middlewares=[KafkaConcurrentProcessingMiddleware],
)


# MANUAL: FastStream does not commit. The library does, and never past a purchase that is still being charged.
@broker.subscriber("purchases", group_id="payments", ack_policy=AckPolicy.MANUAL, auto_offset_reset="earliest")
@broker.publisher("purchase-receipts")
async def charge(purchase: Purchase) -> Receipt:
    await asyncio.sleep(0.01)  # the call to the payment provider
    return Receipt(purchase_id=purchase.purchase_id, charged_cents=purchase.amount_cents)


@asynccontextmanager
async def lifespan(context: ContextRepo) -> AsyncGenerator[None, None]:
    await initialize_concurrent_processing(context, concurrency_limit=100)
    try:
        yield
    finally:
        # By now FastStream has stopped the broker, and that has waited for running handlers and committed.
        await stop_concurrent_processing(context)


app = FastStream(broker, lifespan=lifespan)

if __name__ == "__main__":
    asyncio.run(app.run())
