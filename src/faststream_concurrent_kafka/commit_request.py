"""One commit request: what it sends, and what its answer means for each partition."""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping

from aiokafka import TopicPartition
from aiokafka.errors import InvalidCommitOffsetSizeError, OffsetMetadataTooLargeError

from faststream_concurrent_kafka import private_parts
from faststream_concurrent_kafka.consumer_offsets import CommitFailure, ConsumerOffsets, classify


logger = logging.getLogger(__package__)

# For what the broker has refused: the others wait meanwhile, and aiokafka retries some refusals for ever.
REFUSED_TIMEOUT_SEC = 2.0
_ASK_TIMEOUT_SEC = 2.0


async def commit(offsets: ConsumerOffsets, *, timeout_sec: float, is_last: bool) -> BaseException | None:
    """Send one request with the frontiers of this moment; return why it has failed as a whole, if it has.

    Unless it `is_last`, before the partitions go, a failed request is followed by the question what of it the broker
    has taken: a refused partition does not hold up the others. Raises only when it is itself cancelled.
    """
    began = asyncio.get_running_loop().time()
    frontiers = _without_deleted(offsets, began) if is_last else offsets.to_send(began)
    if not frontiers:
        return None
    sent = offsets.note_sent(frontiers)
    was_refused = not offsets.refusals.keys().isdisjoint(frontiers)
    if was_refused:
        timeout_sec = min(timeout_sec, REFUSED_TIMEOUT_SEC)
    elif offsets.trying_since is None:
        offsets.trying_since = began
    error = await _send(offsets, frontiers, timeout_sec)
    taken: Collection[TopicPartition] = frontiers
    if error is not None:
        if classify(error) is not CommitFailure.RETRIABLE or _gives_up_metadata(offsets, error):
            return error
        taken = () if is_last or not (len(frontiers) > 1 or was_refused) else await _taken(offsets, frontiers)
        if not taken and not was_refused:
            return error
        _note_refused(offsets, frontiers, taken, error, began)
    if taken:
        _note_success(offsets, frontiers, taken, was_refused=was_refused)
    for key in taken:
        ledger, finished = sent[key]
        ledger.ack(frontiers[key], finished)
        if offsets.on_ack is not None and not ledger.closed:
            offsets.on_ack(key, ledger)
    return None


def _without_deleted(offsets: ConsumerOffsets, now: float) -> Mapping[TopicPartition, int]:
    """Leave out what was deleted: aiokafka would try until there is another topic of that name, and commit there."""
    frontiers = offsets.to_send(now)
    existing = {key: offset for key, offset in frontiers.items() if private_parts.exists(offsets.consumer, key)}
    if deleted := frontiers.keys() - existing.keys():
        logger.warning("Not committed, because the partition does not exist any more: %s", describe(frontiers, deleted))
    return existing


async def _send(
    offsets: ConsumerOffsets, frontiers: Mapping[TopicPartition, int], timeout_sec: float
) -> BaseException | None:
    try:
        async with asyncio.timeout(timeout_sec):
            await offsets.consumer.commit(offsets.with_metadata(frontiers))
    except BaseException as error:
        task = asyncio.current_task()
        if not isinstance(error, Exception | asyncio.CancelledError) or (task is not None and task.cancelling()):
            raise
        return error
    return None


def _note_refused(
    offsets: ConsumerOffsets,
    frontiers: Mapping[TopicPartition, int],
    taken: Collection[TopicPartition],
    error: BaseException,
    began: float,
) -> None:
    now = asyncio.get_running_loop().time()
    refused = [key for key in frontiers if key not in taken]
    if new := offsets.refusals.note(refused, repr(error), since=began, now=now):
        logger.warning("The broker refuses a commit, the others go on: %s: %r", describe(frontiers, new), error)


def _note_success(
    offsets: ConsumerOffsets,
    frontiers: Mapping[TopicPartition, int],
    taken: Collection[TopicPartition],
    *,
    was_refused: bool,
) -> None:
    if again := offsets.refusals.forget(taken):
        logger.warning("Commits are not refused any more: %s", describe(frontiers, again))
    if not was_refused:
        if offsets.last_error:
            logger.warning("Commits succeed again: %s", describe(frontiers, taken))
        offsets.succeeded()


async def _taken(offsets: ConsumerOffsets, frontiers: Mapping[TopicPartition, int]) -> set[TopicPartition]:
    """Ask the broker which of these are committed; none if it doesn't answer."""
    taken: set[TopicPartition] = set()
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_SEC):
            for key, frontier in frontiers.items():
                if await offsets.consumer.committed(key) == frontier:
                    taken.add(key)
    except Exception as error:  # noqa: BLE001 - then nothing is known, and everything stays as it was
        logger.debug("Asked what is committed: %r", error)
    return taken


def _gives_up_metadata(offsets: ConsumerOffsets, error: BaseException) -> bool:
    """Leave it out if it is too large for the broker: it must never keep an offset from being committed."""
    if not offsets.writes_metadata or not isinstance(error, OffsetMetadataTooLargeError | InvalidCommitOffsetSizeError):
        return False
    offsets.writes_metadata = False
    logger.warning(
        "The broker takes less metadata than usual (offset.metadata.max.bytes): commits go on without. "
        "After a crash, what has finished behind an unfinished record is handled again."
    )
    return True


def describe(frontiers: Mapping[TopicPartition, int], keys: Iterable[TopicPartition] | None = None) -> str:
    """Name partitions and offsets, for a log."""
    chosen: Collection[TopicPartition] = list(frontiers if keys is None else keys)
    return ", ".join(f"{key.topic}[{key.partition}]@{frontiers[key]}" for key in chosen)
