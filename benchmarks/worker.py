"""One measurement in a process of its own: `python -m benchmarks.worker JSON` prints what it measured as JSON."""

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import os
import sys
import time
import tracemalloc
from collections.abc import Collection, Mapping
from pathlib import Path
from uuid import uuid4

import psutil
from aiokafka import TopicPartition
from faststream.kafka import KafkaBroker
from faststream.middlewares import AckPolicy

from benchmarks.trial import MAX_WORKERS, RETRY_BACKOFF_SEC, Measured, Trial
from faststream_concurrent_kafka import (
    FailurePolicy,
    KafkaBatchCommitter,
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from faststream_concurrent_kafka._commit.admission import Admission


_BYTES_PER_MB = 1e6


class Clock:
    """Counts records, and takes the time from the first that begins to the last that ends."""

    def __init__(self, trial: Trial) -> None:
        self.done = asyncio.Event()
        self.rss_mb: list[float] = []
        self.entered = 0
        self._records = trial.records
        self._rss_every = trial.rss_every or trial.records
        self._left = 0
        self._process = psutil.Process()
        self._began = self._ended = (0.0, 0.0)

    def enter(self) -> None:
        """Note that a handler begins."""
        if self.entered == 0:
            self._began = _now()
        self.entered += 1

    def leave(self) -> None:
        """Note that a handler ends."""
        self._left += 1
        if self._left == self._records:
            self._ended = _now()
            self.done.set()
        if self._left % self._rss_every == 0:
            self.rss_mb.append(self._process.memory_info().rss / _BYTES_PER_MB)

    def measured(self) -> Measured:
        """Return the result; only after `done`."""
        wall_sec, cpu_sec = (ended - began for began, ended in zip(self._began, self._ended, strict=True))
        return Measured(records=self._records, wall_sec=wall_sec, cpu_sec=cpu_sec, rss_mb=self.rss_mb)


class Gate:
    """A barrier: handlers wait until `size` of them are there, then all go on; one suspension per record."""

    def __init__(self, size: int, clock: Clock, records: int) -> None:
        self._size = size
        self._clock = clock
        self._records = records
        self._waiting = 0
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        """Wait for the others; the last records do not wait."""
        self._waiting += 1
        opened = self._opened
        if self._waiting == self._size or self._clock.entered == self._records:
            self._waiting = 0
            self._opened = asyncio.get_running_loop().create_future()
            opened.set_result(None)
        await opened


async def measure(trial: Trial, bootstrap: list[str], topic: str) -> Measured:
    """Consume the topic from its beginning with the system under test."""
    ours = trial.system == "concurrent"
    middlewares = [KafkaConcurrentProcessingMiddleware] if ours else []
    if trial.logged:
        broker = KafkaBroker(bootstrap, middlewares=middlewares)
    else:
        broker = KafkaBroker(bootstrap, middlewares=middlewares, logger=None)
        # The library logs a warning for every failed attempt.
        logging.getLogger("faststream_concurrent_kafka").setLevel(logging.CRITICAL)
    clock = Clock(trial)
    gate = Gate(trial.concurrency_limit, clock, trial.records)
    sleep_sec = trial.sleep_ms / 1000
    failed: set[int] = set()

    @broker.subscriber(
        topic,
        group_id=f"bench-{uuid4().hex[:8]}",
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.MANUAL if ours else AckPolicy.ACK_FIRST,
        max_workers=MAX_WORKERS if trial.system == "max_workers" else 1,
    )
    async def handle(msg: dict) -> None:  # ty: ignore[missing-type-argument]
        clock.enter()
        if trial.fails_every and msg["i"] % trial.fails_every == 0 and msg["i"] not in failed:
            failed.add(msg["i"])
            raise ConnectionError("the first attempt")
        if sleep_sec:
            await asyncio.sleep(sleep_sec)
        elif trial.together:
            await gate.wait()
        elif trial.stuck and msg["i"] == 0:
            await clock.done.wait()
        clock.leave()

    if ours:
        await initialize_concurrent_processing(
            broker.context,
            broker=broker,
            concurrency_limit=trial.concurrency_limit,
            max_uncommitted_tasks=trial.max_uncommitted_tasks,
            ordering=trial.ordering,
            on_failure=FailurePolicy(max_attempts=trial.max_attempts, first_backoff_sec=RETRY_BACKOFF_SEC),
        )
    if trial.gc_tuned:
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
    await broker.start()
    await clock.done.wait()
    await broker.stop()
    if ours:
        await stop_concurrent_processing(broker.context)
    return clock.measured()


class _NoKafka:
    """A consumer that commits nowhere."""

    def assignment(self) -> Collection[TopicPartition]:
        return {TopicPartition("topic", 0)}

    async def commit(self, offsets: Mapping[TopicPartition, int | tuple[int, str]], /) -> None:
        raise AssertionError(f"nothing can be committed past the stuck record: {offsets}")

    async def committed(self, partition: TopicPartition, /) -> int | None:
        raise AssertionError(f"nothing can be committed of {partition}")


async def measure_ledger(trial: Trial) -> Measured:
    """Let records finish behind a stuck one, and measure what the library keeps of each."""
    committer = KafkaBatchCommitter()
    committer.spawn()
    consumer = _NoKafka()
    first_offset = 1_000_000  # large offsets, because CPython caches small integers
    committer.admit(consumer, Admission(("topic", 0), first_offset))
    in_flight: list[Admission] = []
    tracemalloc.start()
    before, began = tracemalloc.get_traced_memory()[0], _now()
    for offset in range(first_offset + 1, first_offset + 1 + trial.records):
        in_flight.append(Admission(("topic", 0), offset))
        committer.admit(consumer, in_flight[-1])
        if len(in_flight) == trial.concurrency_limit:
            for task in in_flight:
                committer.complete(task)
            in_flight.clear()
            await asyncio.sleep(0)
    wall_sec, cpu_sec = (ended - start for start, ended in zip(began, _now(), strict=True))
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    await committer.close()
    return Measured(
        records=trial.records,
        wall_sec=wall_sec,
        cpu_sec=cpu_sec,
        rss_mb=[psutil.Process().memory_info().rss / _BYTES_PER_MB],
        bytes_per_offset=kept / trial.records,
    )


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def main(text: str) -> None:
    """Make the measurement that `text` describes."""
    trial, bootstrap, topic = Trial.from_json(text)
    run = measure_ledger(trial) if trial.system == "ledger" else measure(trial, bootstrap, topic)
    with contextlib.ExitStack() as redirected:
        # Only the log goes to /dev/null: a traceback and the result are printed after the redirection.
        if trial.logged:
            nowhere = redirected.enter_context(Path(os.devnull).open("w"))
            redirected.enter_context(contextlib.redirect_stdout(nowhere))
            redirected.enter_context(contextlib.redirect_stderr(nowhere))
        measured = asyncio.run(run)
    print(json.dumps(dataclasses.asdict(measured)))


if __name__ == "__main__":
    main(sys.argv[1])
