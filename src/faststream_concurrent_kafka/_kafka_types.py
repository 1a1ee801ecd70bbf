"""Types of aiokafka in public signatures.

aiokafka has no `py.typed`, so type checkers do not accept names imported from it as exports of a typed package, but
they accept them as attributes of its modules. At run time these are aiokafka's classes.
"""

from typing import Any, TypeAlias

import aiokafka


AnyRecord: TypeAlias = aiokafka.ConsumerRecord[Any, Any]
ConsumerRebalanceListener: TypeAlias = aiokafka.ConsumerRebalanceListener
OffsetAndMetadata: TypeAlias = aiokafka.OffsetAndMetadata
Record: TypeAlias = aiokafka.ConsumerRecord[bytes, bytes]
TopicPartition: TypeAlias = aiokafka.TopicPartition
