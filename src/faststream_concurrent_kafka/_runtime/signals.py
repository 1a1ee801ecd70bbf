"""Signals that nobody else handles: drain and commit first, then let them take their course."""

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
    """Puts `stop` before the default course of SIGINT, SIGTERM and SIGQUIT.

    A signal that somebody else handles (FastStream's `run`, uvicorn, the application) is left to them: they stop the
    broker, and that drains and commits. Ours covers plain scripts, and SIGQUIT under any of them.
    """

    def __init__(self, stop: Callable[[], Awaitable[None]]) -> None:
        self._stop = stop
        self._courses: dict[int, Any] = {}
        self._is_installed = False
        self._stopping: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take over the signals that have their default handler. Outside of the main thread this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._loop = loop
        self._is_installed = True
        for number in _SIGNALS:
            course = signal.getsignal(number)
            if _is_default(course):
                # Not `loop.add_signal_handler`: that replaces the handlers that FastStream installs in the loop.
                self._courses[number] = course
                signal.signal(number, self._on_signal)

    def uninstall(self) -> None:
        """Put back what was there, unless our handler has been replaced since."""
        self._is_installed = False
        if threading.current_thread() is threading.main_thread():
            for number, course in self._courses.items():
                if signal.getsignal(number) == self._on_signal:
                    signal.signal(number, course)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._is_installed or not self._loop.is_running():
            # Our loop has ended without a stop, or a handler that replaced ours still calls it.
            course = self._courses[number]
            if callable(course):
                course(number, frame)
            else:
                self._take_its_course(number)
        elif self._stopping is not None:
            # The second signal: whoever sends it does not want to wait any longer.
            self._take_its_course(number)
        else:
            # In a context of its own: a signal handler runs in that of whatever it interrupts, a record's for example.
            self._loop.call_soon_threadsafe(self._begin, number, context=contextvars.Context())

    def _begin(self, number: int) -> None:
        if self._stopping is None:
            logger.warning("%s: draining and committing before it takes its course", signal.Signals(number).name)
            self._stopping = self._loop.create_task(self._stop_then_raise(number), name="kafka-signal-stop")

    async def _stop_then_raise(self, number: int) -> None:
        try:
            await self._stop()
        finally:
            self._take_its_course(number)

    def _take_its_course(self, number: int) -> None:
        # Whoever is in place by now: somebody who calls us would otherwise be called again, and so on for ever.
        signal.signal(number, self._courses[number])
        os.kill(os.getpid(), number)


def _is_default(handler: Any) -> bool:
    """Whether nobody has asked for this signal. asyncio.run's own handler for SIGINT counts as nobody."""
    if handler is signal.SIG_DFL or handler is signal.default_int_handler:
        return True
    if isinstance(handler, functools.partial):
        return isinstance(getattr(handler.func, "__self__", None), asyncio.Runner)
    return False
