"""Handle many Kafka records at once in FastStream, and lose none."""

from faststream_concurrent_kafka.batch_committer import KafkaBatchCommitter, KafkaCommitTask
from faststream_concurrent_kafka.errors import (
    CommitterIsDeadError,
    ConcurrentKafkaError,
    HandlerTimeoutError,
    SettingsError,
    SetupError,
)
from faststream_concurrent_kafka.healthcheck import (
    HealthReport,
    PartitionReport,
    get_kafka_handler_report,
    is_kafka_handler_alive,
    is_kafka_handler_healthy,
)
from faststream_concurrent_kafka.lifespan import initialize_concurrent_processing, stop_concurrent_processing
from faststream_concurrent_kafka.middleware import Attempt, KafkaConcurrentProcessingMiddleware
from faststream_concurrent_kafka.policies import DeadLetter, FailurePolicy, is_retriable
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler


__all__ = [
    "Attempt",
    "CommitterIsDeadError",
    "ConcurrentKafkaError",
    "DeadLetter",
    "FailurePolicy",
    "HandlerTimeoutError",
    "HealthReport",
    "KafkaBatchCommitter",
    "KafkaCommitTask",
    "KafkaConcurrentHandler",
    "KafkaConcurrentProcessingMiddleware",
    "PartitionReport",
    "SettingsError",
    "SetupError",
    "get_kafka_handler_report",
    "initialize_concurrent_processing",
    "is_kafka_handler_alive",
    "is_kafka_handler_healthy",
    "is_retriable",
    "stop_concurrent_processing",
]
