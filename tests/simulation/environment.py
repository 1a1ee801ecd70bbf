"""Replaces what the processes of a world share with this process: the log, signals, randomness, producers."""

import logging
import random
import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from typing_extensions import override

from faststream_concurrent_kafka._upstream import subscribers
from tests.simulation.world import World


_library = logging.getLogger("faststream_concurrent_kafka")


class _LogHandler(logging.Handler):
    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._world.emit(record)


@contextmanager
def environment(world: World) -> Generator[None]:
    """Replace the shared objects by the world's until the end of the block."""
    parts: Any = subscribers
    make_producer, random_state, propagates = parts.make_producer, random.getstate(), _library.propagate
    log_handler = _LogHandler(world)
    _library.addHandler(log_handler)
    _library.propagate = False
    random.seed(world.plan.seed)
    parts.make_producer = world.make_producer
    try:
        with _own_signals():
            yield
    finally:
        parts.make_producer = make_producer
        random.setstate(random_state)
        _library.propagate = propagates
        _library.removeHandler(log_handler)


@contextmanager
def _own_signals() -> Generator[None]:
    """Install signal handlers as an application would, so that the library installs none."""

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT]
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, course in zip(numbers, before, strict=True):
            signal.signal(number, course)
