"""Which subscribers become concurrent, with which settings, and why a subscriber can't."""

import logging
import weakref
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from faststream.kafka.subscriber.usecase import LogicSubscriber
from faststream.middlewares import AckPolicy

from faststream_concurrent_kafka._record.slots import Share
from faststream_concurrent_kafka._subscriber.attachment import SubscriberAttachment
from faststream_concurrent_kafka._upstream.subscribers import middlewares_of, reads
from faststream_concurrent_kafka.errors import SettingsError, SetupError
from faststream_concurrent_kafka.policies import DeadLetter
from faststream_concurrent_kafka.processing import KafkaConcurrentHandler
from faststream_concurrent_kafka.settings import Settings


logger = logging.getLogger("faststream_concurrent_kafka")

# The warnings that were logged for each subscriber.
_warned: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


class Configured:
    """Base class of the library's middleware, by which it is found among a subscriber's middlewares."""

    overrides: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """The settings in which its subscribers differ from the handler's."""


def attach_all(brokers: Iterable[Any], handler: KafkaConcurrentHandler) -> list[str]:
    """Attach the subscribers of the brokers that are not attached; return the problems of their setup.

    Raises:
        SetupError, SettingsError: see `why_not`.

    """
    subscribers = subscribers_of(brokers)
    for subscriber in subscribers:
        if not _ours(subscriber):
            if subscriber.ack_policy is AckPolicy.MANUAL:
                warn_once(
                    subscriber,
                    "KafkaConcurrentProcessingMiddleware is not among its middlewares. With AckPolicy.MANUAL nothing "
                    "is committed for it, unless its handlers do that: add the middleware to its broker or router",
                )
        elif attachment_of(subscriber, handler) is None:
            reason = why_not(subscriber, handler)
            if reason is None:
                attach(subscriber, handler)
            else:
                warn_once(subscriber, reason)
    forgotten = [each.topic_names for each in subscribers if each.ack_policy is AckPolicy.MANUAL]
    if forgotten and not any(map(_ours, subscribers)):
        return [f"no subscriber is concurrent: KafkaConcurrentProcessingMiddleware is in none of those of {forgotten}"]
    return []


def attach_late(subscriber: LogicSubscriber[Any], handler: KafkaConcurrentHandler) -> SubscriberAttachment | None:
    """Attach a subscriber that was found only by its first record; if it can't be attached, warn once, return None."""
    try:
        reason = why_not(subscriber, handler)
    except (SetupError, SettingsError) as error:
        reason = str(error)
    if reason is not None:
        warn_once(subscriber, reason)
        return None
    # The subscriber may have been declared since the last discovery.
    handler.discover()
    if (attachment := attachment_of(subscriber, handler)) is not None:
        return attachment
    if handler.knows_all_brokers:
        logger.warning(
            "The subscriber of %s was found only by its first record: until then it was not concurrent. "
            "Give initialize_concurrent_processing() the context of the application that runs, or broker=",
            subscriber.topic_names,
        )
    return attach(subscriber, handler)


def warn_once(subscriber: LogicSubscriber[Any], reason: str) -> None:
    """Log why a subscriber is not concurrent, each reason once."""
    warned = _warned.setdefault(subscriber, set())
    if reason not in warned:
        warned.add(reason)
        logger.warning("The subscriber of %s is not concurrent: %s", subscriber.topic_names, reason)


def attachment_of(subscriber: LogicSubscriber[Any], handler: KafkaConcurrentHandler) -> SubscriberAttachment | None:
    """Return the attachment of a subscriber to this handler, if there is one."""
    for source in handler.attached:
        if isinstance(source, SubscriberAttachment) and source.subscriber is subscriber:
            return source
    return None


def attach(subscriber: LogicSubscriber[Any], handler: KafkaConcurrentHandler) -> SubscriberAttachment:
    """Attach a subscriber for which `why_not` has returned None."""
    settings = _settings_of(subscriber, handler)
    if settings.enable_batch_commit and subscriber.group_id is None:
        logger.warning(
            "The subscriber of %s has no group_id: it is concurrent, but nothing can be committed for it: each start "
            "begins where its auto_offset_reset says",
            subscriber.topic_names,
        )
    for doubt in settings.doubts():
        if doubt not in handler.settings.doubts():
            logger.warning("The subscriber of %s: %s", subscriber.topic_names, doubt)
    attachment = SubscriberAttachment(subscriber, handler, settings, _share_of(subscriber, handler))
    attachment.attach()
    return attachment


def why_not(subscriber: LogicSubscriber[Any], handler: KafkaConcurrentHandler) -> str | None:
    """Say why the records of a subscriber can't be handled concurrently.

    Raises:
        SetupError: the subscriber has `max_workers`, reads its own dead letter topic, or can't halt.
        SettingsError: its settings contradict those of the handler.

    """
    max_workers = getattr(subscriber, "max_workers", 1)
    if max_workers > 1:
        raise SetupError(
            f"max_workers={max_workers} of the subscriber of {subscriber.topic_names} can't be combined with "
            "KafkaConcurrentProcessingMiddleware: remove max_workers, and set concurrency_limit in "
            "initialize_concurrent_processing()",
        )
    settings = _settings_of(subscriber, handler)
    most = handler.settings.concurrency_limit
    if 0 < most < settings.concurrency_limit:
        raise SettingsError(
            f"concurrency_limit={settings.concurrency_limit} of the subscriber of {subscriber.topic_names} is above "
            f"that of all, {most}: lower it in configured(), or raise that in initialize_concurrent_processing()",
        )
    then = settings.on_failure.then
    if isinstance(then, DeadLetter) and isinstance(then.topic, str) and reads(subscriber, then.topic):
        raise SetupError(
            f"the dead letters of the subscriber of {subscriber.topic_names} would go to {then.topic}, which it "
            "reads itself, and never end: give DeadLetter another topic, or narrow what the subscriber reads",
        )
    if then == "halt" and subscriber.group_id is None:
        raise SetupError(
            f'then="halt" needs a group_id, which the subscriber of {subscriber.topic_names} does not have: without '
            "one, no committed offset can stay at the failed record",
        )
    if settings.enable_batch_commit and subscriber.ack_policy is not AckPolicy.MANUAL:
        return (
            f"its ack_policy is {subscriber.ack_policy.name}, which commits records that others have not finished: "
            "set ack_policy=AckPolicy.MANUAL, and the library commits"
        )
    return None


def subscribers_of(brokers: Iterable[Any]) -> list[LogicSubscriber[Any]]:
    """Return the Kafka subscribers that have a handler function: not those used by `get_one()` or `async for` only."""
    return [
        subscriber
        for broker in brokers
        for subscriber in broker.subscribers
        if isinstance(subscriber, LogicSubscriber) and subscriber.calls
    ]


def _ours(subscriber: LogicSubscriber[Any]) -> list[type[Configured]]:
    """Return the library's middlewares of a subscriber: its broker's first, its nearest router's last."""
    return [each for each in middlewares_of(subscriber) if isinstance(each, type) and issubclass(each, Configured)]


def _settings_of(subscriber: LogicSubscriber[Any], handler: KafkaConcurrentHandler) -> Settings:
    settings = handler.settings
    for each in _ours(subscriber):
        settings = settings.overridden(each.overrides)
    return settings


def _share_of(subscriber: LogicSubscriber[Any], handler: KafkaConcurrentHandler) -> Share:
    limited = [each for each in _ours(subscriber) if "concurrency_limit" in each.overrides]
    slots = handler.slots
    # Subscribers with the same class, made by one call of `configured()`, share its limit.
    return slots.share(slots.pool(limited[-1], limited[-1].overrides["concurrency_limit"]) if limited else None)
