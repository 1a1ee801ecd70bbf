"""A second worker joins and leaves again and again while hundreds of handlers are in flight.

With REBALANCE_ROUNDS=10 in the environment, `pytest -s` prints the figures of docs/reliability.md.
"""

import asyncio
import os
import statistics
from array import array
from pathlib import Path
from typing import Any

import pytest

from testkit.brokers import Record, produce, wait_until
from testkit.causes import ALLOWED, Cause
from testkit.history import NS, History, Topic
from testkit.journal import Journal, Writer
from testkit.load import Load
from testkit.log import Log, LogWriter
from testkit.oracle import Oracle
from testkit.worker import Task, new_app, warnings_kept


PARTITIONS = 6


async def feed(cluster, topic, load, produced, done):
    """Produce more records than one worker can handle, until `done`; note the numbers of each partition."""
    for first in range(0, load.count, 75):
        if done.is_set():
            return
        numbers = range(first, first + 75)
        records = [Record(load.value(each), load.key(each), None, load.partition(each)) for each in numbers]
        for each, place in zip(numbers, await produce(cluster.bootstrap_servers, topic, records), strict=True):
            assert place.offset == len(produced[place.partition])
            produced[place.partition].append(each)
        await asyncio.sleep(0.2)  # the pace of the producer


async def come_and_go(journals, task, log, rounds):
    """Let a second worker join, wait until it has records in flight, and let it leave."""
    for _ in range(rounds):
        first = journals[1]
        await wait_until(lambda it=first: it.read().in_flight >= 200, 40, lambda it=first: f"in flight: {it.in_flight}")
        index = len(journals) + 1
        member = task(index).start()
        log.write("start", index)
        journals[index] = member.journal
        try:
            await member.until(lambda it=member.journal: len(it.runs) >= 100, 40, "its share")
            log.write("term", index, "-")
            await member.stop()
        finally:
            member.kill()


def stalls_of(journal):
    """Return for how many seconds a worker began no record around each rebalance."""
    began = [run.start_ns for run in journal.runs]
    return [
        (min((at for at in began if at > end), default=end) - max((at for at in began if at <= end), default=end)) / NS
        for end in revocations_of(journal)
    ]


def revocations_of(journal):
    """Return when partitions were revoked; the first join revokes none."""
    return [each.revoked_ns for each in journal.epochs if each.partitions and each.revoked_ns is not None]


@pytest.mark.slow("a second worker joins and leaves three times, each time with hundreds of handlers in flight")
@pytest.mark.parametrize(
    ("drain_sec", "ordering", "rounds", "with_metadata"),
    [(0, "unordered", 3, True), (0.3, "key", 3, True), (0.3, "unordered", 1, False), (3, "unordered", 1, True)],
)
async def test_a_second_worker_joins_and_leaves(
    cluster, new_topic, tmp_path: Path, *, drain_sec, ordering, rounds, with_metadata
):
    """None lost, none run twice in one process; in two only those that outlast the drain (with 3 s: none)."""
    rounds = int(os.environ.get("REBALANCE_ROUNDS", rounds))
    topic, done = await new_topic(PARTITIONS), asyncio.Event()
    load = Load(seed=0, count=75_000, keys=997, partitions=PARTITIONS, ordering=ordering, quick_sec=(0.3, 2.0))
    produced = [array("I") for _ in range(PARTITIONS)]
    settings: dict[str, Any] = {
        "concurrency_limit": 300,
        "rebalance_flush_timeout_sec": drain_sec,
        "commit_metadata": with_metadata,
        "shutdown_timeout_sec": 30,
    }

    def task(number):
        return Task(
            bootstrap_servers=list(cluster.bootstrap_servers),
            topic=topic,
            group=f"{topic}-group",
            journal=str(tmp_path / f"{number}.journal"),
            load=load,
            settings=settings,
        )

    log, writer = LogWriter(tmp_path / "log"), Writer(task(1).journal)
    app, journals = new_app(task(1), writer), {1: Journal(Path(task(1).journal))}
    feeding = asyncio.create_task(feed(cluster, topic, load, produced, done))
    with warnings_kept(writer):
        serving = asyncio.create_task(app.run())
        try:
            await come_and_go(journals, task, log, rounds)
            done.set()
            await feeding
            ends = {partition: len(numbers) for partition, numbers in enumerate(produced) if numbers}
            await cluster.until_committed(topic, ends, timeout_sec=40)
        finally:
            done.set()
            await asyncio.wait({feeding})
            app.exit()
            await serving
    for journal in journals.values():
        journal.read()
    records = sum(map(len, produced))
    history = History(
        load=load,
        topic=Topic.of(produced, records),
        journals=journals,
        log=Log((tmp_path / "log").read_text().splitlines()),
        tells=with_metadata,
    )
    verdict = Oracle(history).verdict()
    rebalances = len(revocations_of(journals[1]))
    print(  # noqa: T201
        f"drain {drain_sec} {ordering} metadata {with_metadata}: {records} records, {rebalances} rebalances,"
        f" twice {verdict.again[Cause.KEPT]}, across {verdict.again.total() - verdict.again[Cause.KEPT]},"
        f" needlessly {sum(times for cause, times in verdict.again.items() if cause not in ALLOWED)},"
        f" median stall {statistics.median(stalls_of(journals[1])):.1f} s,"
        f" others ran {sum(len(each.runs) for each in journals.values()) - len(journals[1].runs)}"
    )
    assert not verdict.broken(), verdict.story()
    assert set(verdict.again) <= {Cause.REBALANCE}
    assert drain_sec < 3 or not verdict.again
    # One rebalance may cover a member that leaves and one that joins.
    assert rounds < rebalances <= 2 * rounds
