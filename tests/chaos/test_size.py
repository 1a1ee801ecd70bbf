"""The oracle needs little enough time and memory for long runs."""

import time
import tracemalloc
from array import array
from pathlib import Path

from testkit.history import History, Topic
from testkit.journal import Journal
from testkit.log import Log
from testkit.oracle import Oracle
from tests.chaos.stories import NS, Keyed


def test_a_million_records_take_seconds_and_little_memory():
    """Checks a small part of a million records against the same part of the limits."""
    count, partitions = 5_000, 12
    load = Keyed(seed=0, count=count, keys=2_000)
    numbers = [array("I", range(partition, count, partitions)) for partition in range(partitions)]
    began = time.process_time()
    tracemalloc.start()
    try:
        journal = Journal(Path("worker-1"))
        for number in range(count):
            journal.take(f"s {NS + number * 1_000_000} topic {number % partitions} {number // partitions} {number} 1")
            journal.take(f"e {NS + number * 1_000_000 + 500_000} {number} ok")
        history = History(load=load, topic=Topic.of(numbers, count), journals={1: journal}, log=Log([]))
        verdict = Oracle(history).verdict()
        memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert memory < 8_000_000
    assert time.process_time() - began < 2
    assert not verdict.broken()
