"""A service where only one router's subscribers are concurrent.

    KAFKA_BOOTSTRAP_SERVERS=localhost:9092 python examples/service_router.py

Parcels are labelled many at once: each label is a slow call, and their order does not matter. Stock changes are
handled one after the other, as FastStream does by itself: there the order matters.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from faststream import AckPolicy, ContextRepo, FastStream
from faststream.kafka import KafkaBroker, KafkaRouter
from pydantic import BaseModel

from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)


class Parcel(BaseModel):
    """A message to the concurrent handler."""

    parcel_id: str
    country: str


class Label(BaseModel):
    """A message that a handler publishes."""

    parcel_id: str
    text: str


class StockChange(BaseModel):
    """A message to the sequential handler."""

    article: str
    pieces: int


class StockLevel(BaseModel):
    """A message that a handler publishes."""

    article: str
    pieces: int


broker = KafkaBroker(os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092").split(","))

# The middleware is on the router, so it concerns the router's subscribers and no others.
parcels = KafkaRouter(middlewares=[KafkaConcurrentProcessingMiddleware])


# MANUAL is set here, because a policy of the broker does not apply to the subscribers of a router.
@parcels.subscriber("parcels", group_id="labels", ack_policy=AckPolicy.MANUAL, auto_offset_reset="earliest")
@parcels.publisher("labels")
async def label(parcel: Parcel) -> Label:
    await asyncio.sleep(0.05)  # the call to the carrier
    return Label(parcel_id=parcel.parcel_id, text=f"{parcel.country}-{parcel.parcel_id}")


stock: dict[str, int] = {}


@broker.subscriber("stock-changes", group_id="stock", ack_policy=AckPolicy.ACK, auto_offset_reset="earliest")
@broker.publisher("stock-levels")
async def count(change: StockChange) -> StockLevel:
    stock[change.article] = stock.get(change.article, 0) + change.pieces
    return StockLevel(article=change.article, pieces=stock[change.article])


broker.include_router(parcels)


@asynccontextmanager
async def lifespan(context: ContextRepo) -> AsyncGenerator[None, None]:
    await initialize_concurrent_processing(context, concurrency_limit=50)
    try:
        yield
    finally:
        await stop_concurrent_processing(context)


app = FastStream(broker, lifespan=lifespan)

if __name__ == "__main__":
    asyncio.run(app.run())
