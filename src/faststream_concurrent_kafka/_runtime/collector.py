"""Python's garbage collector, tuned for thousands of records in flight, and put back."""

import gc
import logging


logger = logging.getLogger("faststream_concurrent_kafka")

_TUNED = (50_000, 20, 20)
# The first threshold that Python itself has: up to 3.12, and later.
_PYTHONS_OWN = (700, 2000)
# From this many records in flight on it is worth it.
_MANY_RECORDS = 500


class Collector:
    """Tunes the collector of the process once, and restores what no other code has changed since."""

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None
        self._tuned: tuple[int, int, int] | None = None
        self._frozen = 0

    def tune(self) -> None:
        """Have the collector look less often, and never at what exists now."""
        self._before = gc.get_threshold()
        gc.set_threshold(*_TUNED)
        # Not always what was set: some versions of Python have no third generation.
        self._tuned = gc.get_threshold()
        # What the application has frozen would be unfrozen with the rest: then nothing more is frozen.
        if not gc.get_freeze_count():
            # Garbage that is frozen would stay.
            gc.collect()
            gc.freeze()
            self._frozen = gc.get_freeze_count()
        logger.info(
            "tune_gc: until the stop, the garbage collector has thresholds %s in place of %s, and leaves out the %d "
            "objects that exist now",
            *(self._tuned, self._before, self._frozen),
        )

    def restore(self) -> None:
        """Put back the thresholds that were there, and unfreeze; twice does nothing."""
        if self._before is not None and gc.get_threshold() == self._tuned:
            gc.set_threshold(*self._before)
        # More than was frozen here is frozen by others.
        if gc.get_freeze_count() <= self._frozen:
            gc.unfreeze()
        self._before, self._tuned, self._frozen = None, None, 0


def hint_at_tuning(concurrency_limit: int) -> None:
    """Log that the collector can be tuned, where that would help and the application has not done it."""
    if not 0 < concurrency_limit < _MANY_RECORDS and gc.isenabled() and gc.get_threshold()[0] in _PYTHONS_OWN:
        logger.info(
            "concurrency_limit=%d: with that many records in flight Python's garbage collector costs up to half of "
            "the throughput. tune_gc=True lets it look less often",
            concurrency_limit,
        )
