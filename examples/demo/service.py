"""The service that the demo measures: FastStream, one handler, one payment call and one confirmation per order.

The same application runs in each way; only the lines under "the difference" differ.
"""

import argparse
import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from faststream import AckPolicy, ContextRepo, FastStream
from faststream.kafka import KafkaBroker

from examples.demo.ledger import ATTEMPTS, CHARGED, DELIVERED, STOPPING, Journal
from examples.demo.orders import Confirmation, NotChargeableError, Order
from faststream_concurrent_kafka import (
    Attempt,
    DeadLetter,
    FailurePolicy,
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)


SEQUENTIAL, CONCURRENT, MAX_WORKERS = WAYS = ("sequential", "concurrent", "max-workers")
AT_ONCE = 100
PAYMENT_SEC = 0.010
_RETRY_BACKOFF_SEC = 0.1
_REPORT_INTERVAL_SEC = 0.1


def make_app(options: argparse.Namespace) -> FastStream:
    """Build the service."""
    # -- the difference ------------------------------------------------------------------------------------------
    # ACK_FIRST is FastStream's default, its fastest policy, and the one that `max_workers` allows on many partitions.
    is_concurrent = options.way == CONCURRENT
    middlewares = [KafkaConcurrentProcessingMiddleware] if is_concurrent else []
    ack_policy = AckPolicy.MANUAL if is_concurrent else AckPolicy.ACK_FIRST
    max_workers = AT_ONCE if options.way == MAX_WORKERS else 1

    @asynccontextmanager
    async def lifespan(context: ContextRepo) -> AsyncGenerator[None, None]:
        if is_concurrent:
            await initialize_concurrent_processing(
                context,
                concurrency_limit=AT_ONCE,
                on_failure=FailurePolicy(
                    max_attempts=ATTEMPTS, first_backoff_sec=_RETRY_BACKOFF_SEC, then=DeadLetter(options.dead_letters)
                ),
            )
        reports = asyncio.create_task(service.report())
        try:
            yield
        finally:
            if is_concurrent:
                await stop_concurrent_processing(context)
            reports.cancel()
            service.print_counts()

    # -- the same for all ----------------------------------------------------------------------------------------
    service = Service(Journal(options.journal), attempts=ATTEMPTS if is_concurrent else 1)
    broker = KafkaBroker(
        os.environ["KAFKA_BOOTSTRAP_SERVERS"].split(","),
        middlewares=middlewares,
        logger=None,  # two log lines per order would be measured as well
    )
    subscriber = broker.subscriber(
        options.orders,
        group_id=options.group,
        ack_policy=ack_policy,
        max_workers=max_workers,
        auto_offset_reset="earliest",
        # The embedded broker keeps a joining member waiting for about the session timeout: with the default the demo
        # would mostly wait.
        session_timeout_ms=3000,
        heartbeat_interval_ms=500,
    )
    subscriber(broker.publisher(options.confirmations)(service.charge))
    app = FastStream(broker, lifespan=lifespan)
    app.on_shutdown(service.note_stop)
    return app


class Service:
    """The handler and its counts."""

    def __init__(self, journal: Journal, attempts: int) -> None:
        self.journal = journal
        self.attempts = attempts
        self.in_flight = self.charged = self.refused = 0

    async def charge(self, order: Order, attempt: Attempt) -> Confirmation:
        """Charge an order and confirm it."""
        self.journal.write(DELIVERED, order.order_id)
        self.in_flight += 1
        try:
            if order.cents < 0:
                self.refused += attempt == self.attempts
                raise NotChargeableError(f"{order.order_id} comes to {order.cents} cents")
            await asyncio.sleep(PAYMENT_SEC)  # the payment provider's answer takes so long
            self.journal.write(CHARGED, order.order_id)
            self.charged += 1
        finally:
            self.in_flight -= 1
        return Confirmation(order_id=order.order_id, customer=order.customer, charged_cents=order.cents)

    async def report(self) -> None:
        """Print the progress of this process for the demo's picture, repeatedly."""
        while True:
            self.print_counts()
            await asyncio.sleep(_REPORT_INTERVAL_SEC)

    def print_counts(self) -> None:
        """Print one report."""
        counts = {"charged": self.charged, "refused": self.refused, "in_flight": self.in_flight}
        print(json.dumps(counts), flush=True)

    def note_stop(self) -> None:
        """Write to the journal that FastStream has got a signal, before it stops the broker."""
        self.journal.write(STOPPING, str(self.in_flight))


def main() -> None:
    """Run the service until it gets a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--orders", required=True, help="topic to read")
    parser.add_argument("--confirmations", required=True, help="topic to write")
    parser.add_argument("--dead-letters", required=True, help="topic for orders that can't be charged")
    parser.add_argument("--journal", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    asyncio.run(make_app(options).run())


if __name__ == "__main__":
    main()
