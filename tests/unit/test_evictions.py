"""When evictions are reported as a problem."""

import pytest
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka._subscriber.health import SubscriberHealth


# Without a consumer, aiokafka's session timeout is 10 s.
@pytest.mark.parametrize(
    ("evicted_at", "red_at", "green_at"),
    [
        ([0], [], [0, 1, 100]),
        ([0, 1], [], [1, 2, 59]),
        ([0, 15, 30], [30, 59], [60, 1000]),
        ([0, 50, 100], [], [100, 101, 150]),
        ([0, 50, 100, 105, 108], [108, 159], [160]),
    ],
    ids=["one", "two", "three in a row", "three now and then", "in a row at last"],
)
def test_three_within_six_session_timeouts_are_named_until_they_are_past(evicted_at, red_at, green_at):
    """One or two evictions are not reported."""
    subscriber = KafkaBroker(logger=None).subscriber("topic", group_id="group")
    health = SubscriberHealth(subscriber, "the subscriber", stall_timeout_sec=60)
    for moment in evicted_at:
        health.note_eviction(moment)
    for moment in red_at:
        (problem,) = health.problems(moment)
        assert problem.startswith("the subscriber was evicted from its group 3 times within")
    for moment in green_at:
        assert health.problems(moment) == []
