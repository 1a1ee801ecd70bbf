"""Types of aiokafka in public signatures.

aiokafka has no `py.typed`, so type checkers do not take names out of it for what a typed package exports; they do where
the name is read from the module itself. At run time these are aiokafka's classes.
"""

from typing import Any, TypeAlias

import aiokafka


AnyRecord: TypeAlias = aiokafka.ConsumerRecord[Any, Any]
ConsumerRebalanceListener: TypeAlias = aiokafka.ConsumerRebalanceListener
OffsetAndMetadata: TypeAlias = aiokafka.OffsetAndMetadata
Record: TypeAlias = aiokafka.ConsumerRecord[bytes, bytes]
TopicPartition: TypeAlias = aiokafka.TopicPartition
