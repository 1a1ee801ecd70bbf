"""Records that cannot be handled: each is reported, counts as done, and never pins its partition."""

import logging

import pytest
from typing_extensions import TypedDict

from tests.integration.helpers import Seen, consuming, manual, serving


class Order(TypedDict):
    """The message that a handler expects."""

    number: int


def body(number):
    """Return a good record."""
    return b'{"number": %d}' % number


BAD = {
    "not text": (b"\xff\xfe\x00", None, "ValidationError"),
    "broken JSON": (b"{", [("content-type", b"application/json")], "JSONDecodeError"),
    "of another shape": (b'{"number": "seven"}', None, "ValidationError"),
    "empty": (b"", None, "ValidationError"),
    "with a header that is not UTF-8": (body(3), [("note", b"\xff\xfe")], "UnicodeDecodeError"),
    "for no handler": (b'{"number": 3, "other": true}', None, "SubscriberNotFound"),
    "one that the handler refuses": (body(13), None, "RuntimeError"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_record_is_logged_once_and_never_pins_its_partition(cluster, new_broker, new_topic, caplog, kind):
    """Records before and behind it are handled, and the committed offset passes it."""
    topic, seen = await new_topic(), Seen()
    broker = new_broker(logger=logging.getLogger("test.bad"))

    async def handle(order: Order):
        with seen.handling(order["number"]):
            if order["number"] == 13:
                raise RuntimeError("refused")

    broker.subscriber(topic, **manual(topic))(handle, filter=lambda message: b"other" not in message.body)

    bad, headers, error = BAD[kind]
    await cluster.send(topic, map(body, range(3)))
    await cluster.send(topic, [bad], headers=headers)
    await cluster.send(topic, map(body, range(4, 7)))
    with caplog.at_level(logging.ERROR):
        async with serving(broker, commit_batch_timeout_sec=0.1):
            await cluster.until_committed(topic, {0: 7})
    assert set(seen.values) - {13} == {0, 1, 2, 4, 5, 6}
    (logged,) = caplog.records
    assert error in f"{type(logged.exc_info[1]).__name__} {logged.getMessage()}"


async def test_a_batch_that_cannot_be_parsed_never_pins_its_partitions(cluster, new_broker, new_topic, caplog):
    """The offsets of all its records are done together, and the next batches are handled."""
    topic, seen = await new_topic(), Seen()
    broker = new_broker(logger=logging.getLogger("test.bad"))

    @consuming(broker, topic, batch=True, max_records=3)
    async def handle(orders: list[Order]):
        for order in orders:
            with seen.handling(order["number"]):
                pass

    await cluster.send(topic, [*map(body, range(3)), b"\xff", *map(body, range(4, 9))])
    with caplog.at_level(logging.ERROR):
        async with serving(broker, commit_batch_timeout_sec=0.1):
            await cluster.until_committed(topic, {0: 9})
    assert {0, 1, 2, 6, 7, 8} <= set(seen.values)
    assert [record.exc_info is not None for record in caplog.records] == [True]
