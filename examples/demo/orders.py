"""A shop's orders: made up, but shaped like real ones."""

import asyncio
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaProducer
from pydantic import BaseModel


_FIRST_NAMES = ("Ada", "Bela", "Chidi", "Dana", "Emre", "Fatou", "Goran", "Hana", "Ivo", "Jun", "Kaya", "Lena")
_LAST_NAMES = ("Amari", "Berg", "Costa", "Diallo", "Eriksen", "Fischer", "Garcia", "Haddad", "Ito", "Jansen", "Kovac")
_ARTICLES = (
    ("coffee beans, 1 kg", 1890),
    ("espresso cups, set of 4", 3200),
    ("filter papers, 100", 390),
    ("hand grinder", 8900),
    ("milk jug", 2450),
    ("scale", 5900),
    ("tea, 250 g", 1290),
)
_PARTS_WITH_A_KEY = 0.7
# How many records are sent at once while a topic is loaded.
_CHUNK = 500


class Item(BaseModel):
    """One line of an order."""

    article: str
    pieces: int
    cents_each: int


class NotChargeableError(Exception):
    """The sum of an order is negative, so every attempt to charge it fails."""


class Order(BaseModel):
    """What a customer has ordered."""

    order_id: str
    customer: str
    items: list[Item]

    @property
    def cents(self) -> int:
        """What the whole order costs."""
        return sum(item.pieces * item.cents_each for item in self.items)


class Confirmation(BaseModel):
    """The confirmation of a paid order."""

    order_id: str
    customer: str
    charged_cents: int


class Place(NamedTuple):
    """The place of a record in its topic."""

    partition: int
    offset: int


def make_orders(seed: int = 7) -> Iterator[tuple[Order, bytes | None, None]]:
    """Yield orders without end, most of them with the customer as their key; the same ones for the same seed."""
    random_ = random.Random(seed)
    for number in itertools.count(1):
        customer = f"{random_.choice(_FIRST_NAMES)} {random_.choice(_LAST_NAMES)}"
        articles = random_.sample(_ARTICLES, random_.choice((1, 1, 1, 2, 2, 3)))
        items = [Item(article=name, pieces=random_.randint(1, 3), cents_each=cents) for name, cents in articles]
        order = Order(order_id=f"order-{number:06}", customer=customer, items=items)
        yield order, customer.encode() if random_.random() < _PARTS_WITH_A_KEY else None, None


def make_poison_orders(partitions: int) -> Iterator[tuple[Order, bytes | None, int]]:
    """Yield one order for each partition that can't be charged: vouchers for more than what is bought."""
    for partition in range(partitions):
        voucher = Item(article="voucher", pieces=1 + partition, cents_each=-5000)
        customer = f"{_FIRST_NAMES[partition % len(_FIRST_NAMES)]} {_LAST_NAMES[partition % len(_LAST_NAMES)]}"
        order = Order(order_id=f"poison-{partition:06}", customer=customer, items=[voucher])
        yield order, customer.encode(), partition


async def load(
    servers: Sequence[str], topic: str, orders: Iterable[tuple[Order, bytes | None, int | None]]
) -> dict[str, Place]:
    """Publish orders to the topic, and return the acknowledged place of each.

    Each comes with its key, and with its partition unless the key decides.
    """
    placed: dict[str, Place] = {}
    orders = iter(orders)
    producer = AIOKafkaProducer(bootstrap_servers=list(servers), linger_ms=5)
    await producer.start()
    try:
        while chunk := list(itertools.islice(orders, _CHUNK)):
            sent = [
                await producer.send(topic, order.model_dump_json().encode(), key=key, partition=partition)
                for order, key, partition in chunk
            ]
            for (order, *_), record in zip(chunk, await asyncio.gather(*sent), strict=True):
                placed[order.order_id] = Place(record.partition, record.offset)
    finally:
        await producer.stop()
    return placed
