"""A FastAPI application with a concurrent Kafka subscriber (package `faststream-fastapi`), under uvicorn.

KAFKA_BOOTSTRAP_SERVERS=localhost:9092 PORT=8000 python examples/service_fastapi.py
curl -i -X POST localhost:8000/invoices -H 'content-type: application/json' -d '{"invoice_id": "1", "cents": 500}'
curl -i localhost:8000/readyz
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI, Response
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream_fastapi import FastStreamAPI
from pydantic import BaseModel

from faststream_concurrent_kafka import (
    HealthReport,
    KafkaConcurrentProcessingMiddleware,
    get_kafka_handler_report,
    initialize_concurrent_processing,
    is_kafka_handler_alive,
    stop_concurrent_processing,
)


class Invoice(BaseModel):
    """What arrives."""

    invoice_id: str
    cents: int


class Mail(BaseModel):
    """A published message."""

    invoice_id: str
    text: str


broker = KafkaBroker(
    os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092").split(","),
    middlewares=[KafkaConcurrentProcessingMiddleware],
)


@broker.subscriber("invoices", group_id="invoice-mails", ack_policy=AckPolicy.MANUAL, auto_offset_reset="earliest")
@broker.publisher("mails")
async def send_mail(invoice: Annotated[Invoice, Body()]) -> Mail:
    await asyncio.sleep(0.05)  # the call to the mail provider
    return Mail(invoice_id=invoice.invoice_id, text=f"{invoice.cents / 100:.2f} EUR, please")


@asynccontextmanager
async def lifespan(_api: FastAPI) -> AsyncGenerator[None, None]:
    # FastStream's context is that of the FastStreamAPI, not of the FastAPI application.
    await initialize_concurrent_processing(app.context)
    try:
        yield
    finally:
        await stop_concurrent_processing(app.context)


api = FastAPI(lifespan=lifespan)


@api.post("/invoices", status_code=202)
async def accept(invoice: Invoice) -> None:
    await broker.publish(invoice, "invoices")


@api.get("/livez")
async def livez() -> Response:
    # Liveness: fails only if a restart would help. Readiness and alerts are below.
    return Response(status_code=204 if is_kafka_handler_alive(app.context) else 500)


@api.get("/readyz")
async def readyz(response: Response) -> HealthReport:
    report = get_kafka_handler_report(app.context)
    if not (report.is_healthy and await broker.ping(timeout=1.0)):
        response.status_code = 503
    return report


# After the subscribers are declared, because it makes FastAPI's dependencies work in the subscribers that exist by
# then. With safe_connection an application that can't reach Kafka fails to start, instead of logging a warning and
# serving HTTP without it.
app = FastStreamAPI(broker, application=api, safe_connection=True)

if __name__ == "__main__":
    uvicorn.run(app, host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "8000")))
