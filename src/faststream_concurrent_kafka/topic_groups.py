"""The `topic_group` header: one topic shared by several consumer groups, each record meant for one of them."""

import dataclasses
import logging
from typing import Any

from aiokafka import ConsumerRecord


logger = logging.getLogger(__package__)

TOPIC_GROUP_HEADER = "topic_group"


def for_group(raw: ConsumerRecord[Any, Any], group_id: str | None) -> ConsumerRecord[Any, Any] | None:
    """Return the record, or None if its header names another consumer group.

    A header that can't be read counts as absent, and is taken out: FastStream would fail to parse the whole record.
    """
    for name, value in raw.headers:
        if name == TOPIC_GROUP_HEADER:
            try:
                return raw if value.decode() == group_id else None
            except (AttributeError, UnicodeDecodeError):
                place = (raw.topic, raw.partition, raw.offset)
                logger.warning("%s[%d]@%d: header %s=%r is not UTF-8, and ignored", *place, name, value)
                readable = tuple(header for header in raw.headers if header[0] != TOPIC_GROUP_HEADER)
                return dataclasses.replace(raw, headers=readable)
    return raw
