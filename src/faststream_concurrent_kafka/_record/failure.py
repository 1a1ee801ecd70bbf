"""What happens to a record after a failed pass: retry, dead letter, halt, or commit.

Invariants: I18, I25, I26.
"""

import asyncio
import logging
import random
from collections.abc import Callable

from faststream.exceptions import NackMessage

from faststream_concurrent_kafka._checks import is_seconds
from faststream_concurrent_kafka._record.record import Outcome, Record
from faststream_concurrent_kafka._upstream.messages import is_unreadable
from faststream_concurrent_kafka.errors import brief, escaped, text_of
from faststream_concurrent_kafka.policies import DeadLetter, FailurePolicy
from faststream_concurrent_kafka.settings import Settings


logger = logging.getLogger("faststream_concurrent_kafka")

# The delay before a nacked record is handled again: at once, but not in a busy loop.
NACK_DELAY_SEC = 0.5
_MOST_CAUSES = 10
_MOST_TEXT = 200


class Failures:
    """Carries out the failure policies. While it waits, the record holds no slot, and keeps its place in its order."""

    def __init__(self, settings: Settings, jitter: Callable[[], float] = random.random) -> None:
        self._settings = settings
        self._jitter = jitter

    async def deal_with(self, record: Record, outcome: Outcome, error: BaseException | None) -> Outcome:
        """Carry out the record's policy; return AGAIN when its next attempt is due, else DONE or NOT_DONE."""
        policy = (record.source.settings if record.source is not None else self._settings).on_failure
        error = NackMessage() if error is None else error
        delay_sec = self._delay_sec(policy, record, outcome, error)
        if delay_sec is not None:
            now = asyncio.get_running_loop().time()
            if record.is_ending and (outcome is Outcome.NACKED or now + delay_sec >= record.retry_until):
                return Outcome.NOT_DONE
            if outcome is Outcome.FAILED:
                most = policy.max_attempts or "any number"
                logger.warning(
                    "%r failed at attempt %d of %s, again in %.2f s: %s",
                    *(record, record.attempt, most, delay_sec, brief(error)),
                )
            await self._wait(record, delay_sec)
            return Outcome.AGAIN
        if record.is_ending and record.is_fenced and policy.then != "commit":
            # The next owner of its partition gets the record as well, and decides. With "commit" it counts as done, so
            # that this process does not run it again if it comes back.
            return Outcome.NOT_DONE
        return await self._give_up(record, policy.then, error)

    def _delay_sec(self, policy: FailurePolicy, record: Record, outcome: Outcome, error: BaseException) -> float | None:
        """Return the seconds before the next attempt; None if there is none."""
        attempt = record.attempt
        if outcome is Outcome.NACKED:
            # Without retries in the policy, a nack asks for another attempt and gets it.
            return _nack_delay_sec(error) if not policy.retries or policy.has_attempts_left(attempt) else None
        if not policy.has_attempts_left(attempt):
            return None
        try:
            again = policy.wants_again(error, attempt, is_unreadable=_is_unreadable(record, error))
        except KeyboardInterrupt:
            raise
        except BaseException:
            logger.exception("retry_on has failed: %r is tried again", record)
            again = True
        if not again:
            return None
        return policy.backoff_sec(attempt, self._jitter())

    async def _give_up(self, record: Record, then: str | DeadLetter, error: BaseException) -> Outcome:
        source, attempt = record.source, record.attempt
        if source is None or then == "commit":
            is_logged = source is not None and source.has_logged(error)
            if attempt > 1 or not is_logged:
                logger.error(
                    "%r is given up after %d attempt%s, as if it were done: %s",
                    *(record, attempt, "" if attempt == 1 else "s", brief(error)),
                    exc_info=None if is_logged else error,
                )
            return Outcome.DONE
        if then == "halt":
            source.halt(record, f"failed at attempt {attempt}: {brief(error)}", error)
            return Outcome.NOT_DONE
        await source.dead_letter(record, error)
        return Outcome.DONE

    async def _wait(self, record: Record, delay_sec: float) -> None:
        record.back_off(asyncio.get_running_loop().time() + delay_sec)
        await asyncio.sleep(delay_sec)
        record.get_ready()


def _is_unreadable(record: Record, error: BaseException | None) -> bool:
    """Whether FastStream can't read the record: its parser, its decoder or a filter has raised the error."""
    for _ in range(_MOST_CAUSES):
        if error is None or is_unreadable(error, record.raw):
            return error is not None
        # A middleware may raise its own error from FastStream's one, so causes count; causes of a handler's error do
        # not.
        error = (error.__cause__ or error.__context__) if record.message is None else None
    return False


def _nack_delay_sec(error: BaseException) -> float:
    options = error.extra_options if isinstance(error, NackMessage) else {}
    delay_sec = options.get("delay", NACK_DELAY_SEC)
    if set(options) - {"delay"} or not is_seconds(delay_sec):
        logger.warning("NackMessage takes nothing but delay=<seconds>, got %s", escaped(text_of(options), _MOST_TEXT))
        return NACK_DELAY_SEC
    return float(delay_sec)
