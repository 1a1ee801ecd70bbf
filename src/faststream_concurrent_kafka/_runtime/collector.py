"""Tunes Python's garbage collector for thousands of records in flight, and undoes it."""

import gc
import logging


logger = logging.getLogger("faststream_concurrent_kafka")

_TUNED = (50_000, 20, 20)
# Python's own first threshold: up to 3.12, and later.
_PYTHONS_OWN = (700, 2000)
# The number of records in flight from which tuning is worth it.
_MANY_RECORDS = 500


class Collector:
    """Tunes the collector of the process, and later restores the settings that no other code has changed since."""

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None
        self._tuned: tuple[int, int, int] | None = None
        self._frozen = 0

    def tune(self) -> None:
        """Let the collector run less often, and leave out the objects that exist now."""
        self._before = gc.get_threshold()
        gc.set_threshold(*_TUNED)
        # Read back, since some versions of Python have no third generation and ignore that threshold.
        self._tuned = gc.get_threshold()
        # If the application has frozen objects, unfreezing at the stop would unfreeze those as well: then freeze
        # nothing.
        if not gc.get_freeze_count():
            # Collect first: frozen garbage would never be freed.
            gc.collect()
            gc.freeze()
            self._frozen = gc.get_freeze_count()
        logger.info(
            "tune_gc: until the stop, the garbage collector has thresholds %s in place of %s, and leaves out the %d "
            "objects that exist now",
            *(self._tuned, self._before, self._frozen),
        )

    def restore(self) -> None:
        """Restore the previous thresholds, and unfreeze; a second call does nothing."""
        if self._before is not None and gc.get_threshold() == self._tuned:
            gc.set_threshold(*self._before)
        # If more objects are frozen than before, other code has frozen them: leave them. Counting visits each of them.
        if self._frozen and gc.get_freeze_count() <= self._frozen:
            gc.unfreeze()
        self._before, self._tuned, self._frozen = None, None, 0


def hint_at_tuning(concurrency_limit: int) -> None:
    """Log that `tune_gc` exists, if it would help and the application has not tuned the collector itself."""
    if not 0 < concurrency_limit < _MANY_RECORDS and gc.isenabled() and gc.get_threshold()[0] in _PYTHONS_OWN:
        logger.info(
            "concurrency_limit=%d: with that many records in flight Python's garbage collector costs up to half of "
            "the throughput. tune_gc=True lets it run less often",
            concurrency_limit,
        )
