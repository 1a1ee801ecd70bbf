"""The `topic_group` header: one topic shared by several consumer groups, each record meant for one of them.

Of several such headers the first readable one decides. An unreadable one counts as absent and is removed, because
FastStream would fail to parse the whole record.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from aiokafka import ConsumerRecord


logger = logging.getLogger("faststream_concurrent_kafka")

TOPIC_GROUP_HEADER = "topic_group"


def for_group(raw: ConsumerRecord[Any, Any], group_id: str | None) -> ConsumerRecord[Any, Any] | None:
    """Return the record, without unreadable `topic_group` headers; None if its header names another consumer group."""
    for name, _ in raw.headers:
        if name == TOPIC_GROUP_HEADER:
            return _if_meant_for(raw, group_id)
    return raw


def _if_meant_for(raw: ConsumerRecord[Any, Any], group_id: str | None) -> ConsumerRecord[Any, Any] | None:
    readable = _readable(raw)
    group = next((value for name, value in readable if name == TOPIC_GROUP_HEADER), None)
    if group is not None and group.decode() != group_id:
        return None
    return raw if len(readable) == len(raw.headers) else dataclasses.replace(raw, headers=readable)


def make_readable(raw: ConsumerRecord[Any, Any]) -> None:
    """Remove the header that FastStream can't read from the record itself."""
    if any(name == TOPIC_GROUP_HEADER for name, _ in raw.headers):
        raw.headers = _readable(raw)


def _readable(raw: ConsumerRecord[Any, Any]) -> Sequence[tuple[str, bytes]]:
    return tuple(header for header in raw.headers if header[0] != TOPIC_GROUP_HEADER or _is_text(raw, header[1]))


def _is_text(raw: ConsumerRecord[Any, Any], value: Any) -> bool:
    try:
        value.decode()
    except (AttributeError, UnicodeDecodeError):
        place = (raw.topic, raw.partition, raw.offset)
        logger.warning("%s[%d]@%d: header %s=%.100r is not UTF-8, and ignored", *place, TOPIC_GROUP_HEADER, value)
        return False
    return True
