"""The Kafka brokers for tests, demo, benchmarks and chaos, and the choice between them."""

from .apache import ApacheKafka
from .choice import choose_broker, decide
from .client import (
    Record,
    committed,
    create_topic,
    end_offsets,
    group_members,
    produce,
    wait_until,
)
from .redpanda import Redpanda
from .server import BrokerError, External, KafkaServer
from .tansu import Tansu


__all__ = [
    "ApacheKafka",
    "BrokerError",
    "External",
    "KafkaServer",
    "Record",
    "Redpanda",
    "Tansu",
    "choose_broker",
    "committed",
    "create_topic",
    "decide",
    "end_offsets",
    "group_members",
    "produce",
    "wait_until",
]
