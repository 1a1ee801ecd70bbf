"""One commit request: what it sends, and what its answer means for each partition (I12, I14)."""

import asyncio
import contextlib
import logging
import math
from collections.abc import Collection, Iterable, Mapping

from aiokafka.errors import (
    InvalidCommitOffsetSizeError,
    KafkaError,
    OffsetMetadataTooLargeError,
    TopicAuthorizationFailedError,
)

from faststream_concurrent_kafka._commit.admission import Admission, Consumer
from faststream_concurrent_kafka._commit.consumer import ConsumerOffsets
from faststream_concurrent_kafka._commit.failure import CommitFailure, classify
from faststream_concurrent_kafka._kafka_types import TopicPartition
from faststream_concurrent_kafka._partition.state import Sent
from faststream_concurrent_kafka._upstream import consumers


logger = logging.getLogger("faststream_concurrent_kafka")

# For one request of refused partitions: other partitions wait meanwhile, and aiokafka retries some refusals for ever.
REFUSED_TIMEOUT_SEC = 2.0
_ASK_TIMEOUT_SEC = 2.0
# The pauses between the attempts of a last commit.
_LAST_PAUSES_SEC = (0.1, 0.2, 0.4, 0.0)
# A map that takes longer to make gives the event loop a turn.
_SHORT_SEC = 0.0005
_TOO_LARGE = (OffsetMetadataTooLargeError, InvalidCommitOffsetSizeError)


async def commit(offsets: ConsumerOffsets, *, timeout_sec: float) -> BaseException | None:
    """Commit what has finished, then the refused partitions that are due again; return the error, if any.

    A refused partition does not hold up the others. Raises only its own cancellation.
    """
    if healthy := offsets.healthy():
        error = await _commit_healthy(offsets, healthy, _now() + timeout_sec)
        if error is not None:
            return error
    if due := offsets.refused(_now()):
        return await _commit_refused(offsets, due, timeout_sec)
    return None


async def commit_last(offsets: ConsumerOffsets, *, timeout_sec: float) -> BaseException | None:
    """Commit before partitions go: the healthy ones first, in several attempts if need be, then the refused ones."""
    deadline = _now() + timeout_sec
    error = await _commit_healthy_last(offsets, deadline)
    if error is not None and not _is_retriable(error):
        return error
    if (left_sec := deadline - _now()) > 0 and (refused := _without_deleted(offsets, offsets.refused())):
        if (lost := await _commit_refused(offsets, refused, left_sec)) is not None:
            return lost
        if _now() < deadline:
            # Records of healthy partitions may have finished meanwhile.
            error = await _commit_healthy_last(offsets, deadline)
    return error


async def _commit_healthy_last(offsets: ConsumerOffsets, deadline: float) -> BaseException | None:
    error = None
    for pause_sec in _LAST_PAUSES_SEC:
        healthy = _without_deleted(offsets, offsets.healthy())
        error = await _commit_healthy(offsets, healthy, deadline, is_last=True) if healthy else None
        if error is None or not _is_retriable(error) or _now() + pause_sec >= deadline:
            break
        await asyncio.sleep(pause_sec)
    return error


def _now() -> float:
    return asyncio.get_running_loop().time()


def _is_retriable(error: BaseException) -> bool:
    return classify(error) is CommitFailure.RETRIABLE


def _without_deleted(offsets: ConsumerOffsets, frontiers: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """Leave out deleted partitions: aiokafka would retry until there is a new topic of that name, and commit there."""
    existing = {key: offset for key, offset in frontiers.items() if consumers.exists(offsets.consumer, key)}
    if deleted := frontiers.keys() - existing.keys():
        logger.warning("Not committed, because the partition does not exist any more: %s", describe(frontiers, deleted))
    return existing


async def _commit_healthy(
    offsets: ConsumerOffsets, frontiers: Mapping[TopicPartition, int], deadline: float, *, is_last: bool = False
) -> BaseException | None:
    began = _now()
    offsets.clock.begin(began)
    try:
        sent = await _prepare(offsets, frontiers, is_last=is_last)
        error = await _send(offsets, sent, deadline)
        if isinstance(error, _TOO_LARGE) and offsets.metadata_limit:
            sent, error = await _send_less(offsets, sent, error, deadline, is_last=is_last)
        taken: dict[TopicPartition, Sent[Admission]] = {}
        if error is None:
            taken = sent
        elif len(sent) > 1 and _is_retriable(error):
            taken = await _taken(offsets, sent, deadline if is_last else _now() + _ASK_TIMEOUT_SEC)
        offsets.acknowledge(taken)
        missing = {key: each.frontier for key, each in sent.items() if key not in taken}
        if error is not None and missing:
            if not _are_refused(error, sent, taken):
                offsets.failed(missing, repr(error), _now())
                return error
            _note_refused(offsets, missing, error, began)
        if offsets.succeeded():
            logger.warning("Commits succeed again: %s", describe(frontiers, taken))
        return None
    finally:
        offsets.clock.end()


def _are_refused(
    error: BaseException,
    sent: Mapping[TopicPartition, Sent[Admission]],
    taken: Mapping[TopicPartition, Sent[Admission]],
) -> bool:
    """Whether the broker refuses single partitions: it says so of the only one, or has taken others of the request."""
    if len(sent) == 1 and isinstance(error, TopicAuthorizationFailedError):
        return True
    is_answer = isinstance(error, KafkaError) and not error.retriable
    return any(is_answer or each.is_new for each in taken.values())


async def _commit_refused(
    offsets: ConsumerOffsets, frontiers: Mapping[TopicPartition, int], timeout_sec: float
) -> BaseException | None:
    began = _now()
    sent = await _prepare(offsets, frontiers)
    error = await _send(offsets, sent, began + min(timeout_sec, REFUSED_TIMEOUT_SEC))
    taken: Mapping[TopicPartition, Sent[Admission]] = sent
    if error is not None:
        if not _is_retriable(error):
            return error
        taken = await _taken(offsets, sent, began + timeout_sec)
        _note_refused(offsets, {key: frontiers[key] for key in frontiers.keys() - taken.keys()}, error, began)
    offsets.acknowledge(taken)
    if again := [key for key in taken if offsets.partition(key).refusal is not None]:
        for key in again:
            offsets.partition(key).refusal = None
        logger.warning("Commits are not refused any more: %s", describe(frontiers, again))
    return None


async def _prepare(
    offsets: ConsumerOffsets, keys: Iterable[TopicPartition], *, with_metadata: bool = True, is_last: bool = False
) -> dict[TopicPartition, Sent[Admission]]:
    """Collect what to send for these partitions; lets other tasks run between two large maps."""
    sent: dict[TopicPartition, Sent[Admission]] = {}
    made_since = math.inf if is_last else _now() - offsets.map_pause_sec()
    for key in keys:
        each = offsets.prepare(key, with_metadata=with_metadata, made_since=made_since, now=_now())
        if each is not None:
            sent[key] = each
        if (sent_map := offsets.partition(key).sent_map) is not None and sent_map.cost_sec > _SHORT_SEC:
            await asyncio.sleep(0)
    # An epoch may have ended meanwhile (a seek, a reset).
    return {key: each for key, each in sent.items() if not each.ledger.closed}


async def _send(
    offsets: ConsumerOffsets, sent: Mapping[TopicPartition, Sent[Admission]], deadline: float
) -> BaseException | None:
    try:
        async with asyncio.timeout_at(deadline):
            if sent:
                await offsets.commit({key: each.value() for key, each in sent.items()})
    except BaseException as error:
        task = asyncio.current_task()
        if not isinstance(error, Exception | asyncio.CancelledError) or (task is not None and task.cancelling()):
            raise
        return error
    return None


async def _send_less(
    offsets: ConsumerOffsets,
    sent: dict[TopicPartition, Sent[Admission]],
    error: BaseException,
    deadline: float,
    *,
    is_last: bool,
) -> tuple[dict[TopicPartition, Sent[Admission]], BaseException | None]:
    """Send with less metadata, and at last with none: metadata must never keep an offset from being committed."""
    answer: BaseException | None = error
    while isinstance(answer, _TOO_LARGE) and any(each.metadata for each in sent.values()):
        offsets.take_less_metadata(sent.values())
        sent = await _prepare(offsets, sent, with_metadata=not is_last)
        answer = await _send(offsets, sent, deadline)
    logger.warning(
        "The broker takes less commit metadata than usual (offset.metadata.max.bytes): it now gets %s. "
        "After a crash, finished records that it does not list are handled again if an earlier one was unfinished.",
        f"{offsets.metadata_limit} bytes of it" if offsets.metadata_limit else "none",
    )
    return sent, answer


def _note_refused(
    offsets: ConsumerOffsets, refused: Mapping[TopicPartition, int], error: BaseException, began: float
) -> None:
    new = [key for key in refused if offsets.partition(key).refuse(repr(error), since=began, now=_now())]
    if new:
        logger.warning("The broker refuses a commit, the others go on: %s: %r", describe(refused, new), error)


async def _taken(
    offsets: ConsumerOffsets, sent: Mapping[TopicPartition, Sent[Admission]], deadline: float
) -> dict[TopicPartition, Sent[Admission]]:
    """Ask the broker which of these offsets are committed; none if it does not answer.

    Where the offset is committed with other metadata, the broker does not have our map: `finished` is 0.
    """
    stored: dict[TopicPartition, tuple[int | None, str | None]] = {}
    try:
        async with asyncio.timeout_at(deadline):
            try:
                stored = await _ask(offsets.consumer, list(sent))
            except KafkaError:
                # The error may concern one partition only.
                for key in sent:
                    with contextlib.suppress(KafkaError):
                        stored |= await _ask(offsets.consumer, [key])
    except Exception as error:  # noqa: BLE001 - then nothing is known, and everything stays as it was
        logger.debug("Asked what is committed: %r", error)
    taken = {}
    for key, each in sent.items():
        offset, metadata = stored.get(key, (None, None))
        if offset == each.frontier and metadata == each.metadata:
            taken[key] = each
        elif offset == each.frontier > each.ledger.acked:
            taken[key] = each._replace(finished=0)
    return taken


async def _ask(
    consumer: Consumer, keys: Collection[TopicPartition]
) -> dict[TopicPartition, tuple[int | None, str | None]]:
    if stored := await consumers.committed_offsets(consumer, keys):
        return {key: (offset, metadata) for key, (offset, metadata) in stored.items()}
    return {key: (await consumer.committed(key), None) for key in keys}


def describe(frontiers: Mapping[TopicPartition, int], keys: Iterable[TopicPartition] | None = None) -> str:
    """Return partitions and offsets as text for a log."""
    chosen: Collection[TopicPartition] = list(frontiers if keys is None else keys)
    return ", ".join(f"{key.topic}[{key.partition}]@{frontiers[key]}" for key in chosen)
