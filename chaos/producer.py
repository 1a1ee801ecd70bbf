"""The producer: `python -m chaos.producer JSON SECONDS`. Numbered records at a bounded rate."""

import asyncio
import sys
import time

from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata

from testkit.journal import Appender
from testkit.worker import Task


_TICK_SEC = 0.02
# While brokers are down, up to this many records wait here; afterwards the rate may rise to catch up.
_MOST_PENDING = 5_000
_MOST_PER_TICK = 60


class Producing:
    """Sends all records, and logs its progress: `p <acknowledged>`, `f <number> <error>`, at the end `x`."""

    def __init__(self, task: Task, seconds: float, producer: AIOKafkaProducer) -> None:
        self._task = task
        self._seconds = seconds
        self._producer = producer
        self._lines = Appender(task.journal)
        self._pending = 0
        self._acknowledged = 0

    async def run(self) -> None:
        """Send all records; return when each is acknowledged or has failed."""
        load, began, sent, said = self._task.load, time.monotonic(), 0, 0.0
        while sent < load.count or self._pending:
            now = time.monotonic() - began
            due = min(load.count, int(load.count * now / self._seconds))
            for number in range(sent, min(due, sent + _MOST_PER_TICK, sent + _MOST_PENDING - self._pending)):
                future = await self._producer.send(
                    self._task.topic, load.value(number), key=load.key(number), partition=load.partition(number)
                )
                future.add_done_callback(lambda done, number=number: self._answered(number, done))
                self._pending += 1
                sent = number + 1
            if now - said > 1:
                said = now
                self._lines.write(f"p {self._acknowledged}")
            await asyncio.sleep(_TICK_SEC)
        self._lines.write(f"x {self._acknowledged}")

    def _answered(self, number: int, done: asyncio.Future[RecordMetadata]) -> None:
        self._pending -= 1
        if done.cancelled() or done.exception() is not None:
            self._lines.write(f"f {number} {'cancelled' if done.cancelled() else repr(done.exception())}")
        else:
            self._acknowledged += 1


async def _main(task: Task, seconds: float) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=task.bootstrap_servers, enable_idempotence=True, acks="all", linger_ms=10
    )
    await producer.start()
    try:
        await Producing(task, seconds, producer).run()
    finally:
        await producer.stop()


if __name__ == "__main__":
    asyncio.run(_main(Task.from_json(sys.argv[1]), float(sys.argv[2])))
