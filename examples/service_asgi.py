"""A FastStream service with liveness and readiness probes over HTTP, under uvicorn.

KAFKA_BOOTSTRAP_SERVERS=localhost:9092 PORT=8000 python examples/service_asgi.py
curl -i localhost:8000/livez
curl -i localhost:8000/readyz
"""

import asyncio
import dataclasses
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import uvicorn
from faststream import AckPolicy, ContextRepo
from faststream.asgi import AsgiFastStream, AsgiResponse, get
from faststream.asgi.response import JSONResponse
from faststream.asgi.types import Scope
from faststream.kafka import KafkaBroker
from pydantic import BaseModel

from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    get_kafka_handler_report,
    initialize_concurrent_processing,
    is_kafka_handler_alive,
    stop_concurrent_processing,
)


class Photo(BaseModel):
    """What arrives."""

    photo_id: str
    url: str


class Thumbnail(BaseModel):
    """A published message."""

    photo_id: str
    url: str


broker = KafkaBroker(
    os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092").split(","),
    middlewares=[KafkaConcurrentProcessingMiddleware],
)


@broker.subscriber("photos", group_id="thumbnails", ack_policy=AckPolicy.MANUAL, auto_offset_reset="earliest")
@broker.publisher("thumbnails")
async def shrink(photo: Photo) -> Thumbnail:
    await asyncio.sleep(0.05)  # the call to the image service
    return Thumbnail(photo_id=photo.photo_id, url=f"{photo.url}?width=200")


@asynccontextmanager
async def lifespan(context: ContextRepo) -> AsyncGenerator[None, None]:
    await initialize_concurrent_processing(context)
    try:
        yield
    finally:
        await stop_concurrent_processing(context)


@get
async def livez(_scope: Scope) -> AsgiResponse:
    """Liveness: fails only if a restart would help, so not because the broker is down."""
    return AsgiResponse(b"", 204 if is_kafka_handler_alive(app.context) else 500)


@get
async def readyz(_scope: Scope) -> AsgiResponse:
    """Readiness, with a text for people: problems, records in flight, the first unfinished record of each partition."""
    report = get_kafka_handler_report(app.context)
    connected = await broker.ping(timeout=1.0)
    status = {"connected": connected, **dataclasses.asdict(report)}
    return JSONResponse(status, 200 if connected and report.is_healthy else 503)


app = AsgiFastStream(broker, lifespan=lifespan, asgi_routes=[("/livez", livez), ("/readyz", readyz)])

if __name__ == "__main__":
    # In a container set HOST=0.0.0.0. uvicorn stops on SIGTERM, and that drains and commits as everywhere else.
    uvicorn.run(app, host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "8000")))
