"""Signals that have their default action: drain and commit first, then raise them again."""

import asyncio
import contextvars
import functools
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any


logger = logging.getLogger("faststream_concurrent_kafka")

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGQUIT") if hasattr(signal, name))


class SignalGuard:
    """Runs `stop` before the default action of SIGINT, SIGTERM and SIGQUIT.

    A signal for which FastStream's `run`, uvicorn or the application has a handler is left to that: it stops the
    broker, which drains and commits. This guard is for plain scripts, and for SIGQUIT everywhere.
    """

    def __init__(self, stop: Callable[[], Awaitable[None]]) -> None:
        self._stop = stop
        self._previous: dict[int, Any] = {}
        self._is_installed = False
        self._stopping: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Install handlers for the signals that have their default action; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._loop = loop
        self._is_installed = True
        for number in _SIGNALS:
            previous = signal.getsignal(number)
            if _is_default(previous):
                # Not by `loop.add_signal_handler`, which would replace the handlers that FastStream installs in the
                # loop.
                self._previous[number] = previous
                signal.signal(number, self._on_signal)

    def uninstall(self) -> None:
        """Restore the previous handlers, except where other code has replaced this one since."""
        self._is_installed = False
        if threading.current_thread() is threading.main_thread():
            for number, previous in self._previous.items():
                if signal.getsignal(number) == self._on_signal:
                    signal.signal(number, previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._is_installed or not self._loop.is_running():
            # The loop has ended without a stop, or a handler that was installed later calls this one after its end.
            previous = self._previous[number]
            if callable(previous):
                previous(number, frame)
            else:
                self._reraise(number)
        elif self._stopping is not None:
            # A second signal: the sender does not want to wait.
            self._reraise(number)
        else:
            # In a new context: a signal handler runs in that of the code that it interrupts, which may be a record's.
            self._loop.call_soon_threadsafe(self._begin, number, context=contextvars.Context())

    def _begin(self, number: int) -> None:
        if self._stopping is None:
            logger.warning("%s: draining and committing before it is raised again", signal.Signals(number).name)
            self._stopping = self._loop.create_task(self._stop_then_raise(number), name="kafka-signal-stop")

    async def _stop_then_raise(self, number: int) -> None:
        try:
            await self._stop()
        finally:
            self._reraise(number)

    def _reraise(self, number: int) -> None:
        # Raise the signal again, since a default action can't be called. Restore the previous handler first: a
        # handler that was installed later, and calls this one, would recurse.
        signal.signal(number, self._previous[number])
        os.kill(os.getpid(), number)


def _is_default(handler: Any) -> bool:
    """Whether a signal has its default action; asyncio.run's own handler for SIGINT counts as that."""
    if handler is signal.SIG_DFL or handler is signal.default_int_handler:
        return True
    if isinstance(handler, functools.partial):
        return isinstance(getattr(handler.func, "__self__", None), asyncio.Runner)
    return False
