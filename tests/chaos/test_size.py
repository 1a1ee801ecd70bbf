"""The oracle is cheap enough for long runs."""

import time
import tracemalloc
from array import array

from chaos.causes import Topic
from chaos.ledger import Handlings, Life
from chaos.log import Log
from chaos.oracle import Oracle
from tests.chaos.stories import NS


def test_a_million_records_take_seconds_and_little_memory():
    """Arrays, not objects: a small part of that here, and its share of what it may take."""
    count, partitions = 5_000, 12
    handlings, life = Handlings(), Life(1)
    handlings.numbers = array("I", range(count))
    handlings.lives = array("H", [1]) * count
    handlings.starts = array("q", range(NS, NS + count * 1_000_000, 1_000_000))
    handlings.ends = array("q", range(NS + 500_000, NS + 500_000 + count * 1_000_000, 1_000_000))
    life.handlings = range(count)
    numbers = [array("I", range(partition, count, partitions)) for partition in range(partitions)]
    began = time.process_time()
    tracemalloc.start()
    try:
        topic = Topic.of(numbers, count)
        findings = Oracle(topic, lambda number: number % 2_000, handlings, {1: life}, Log([])).findings()
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 2
    assert not findings.broken()
