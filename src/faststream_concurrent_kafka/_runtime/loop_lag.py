"""How late the event loop is, and which line blocks it."""

import asyncio
import contextvars
import itertools
import logging
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from types import FrameType

import fast_depends
import faststream

from faststream_concurrent_kafka._runtime.stack import places
from faststream_concurrent_kafka._runtime.turns import Turns, clock_of


logger = logging.getLogger("faststream_concurrent_kafka")

TICK_SEC = 0.25
REMEMBERED_SEC = 60.0
# aiokafka's default, until a consumer is known.
_DEFAULT_SESSION_TIMEOUT_SEC = 10.0
_ADVICE = (
    "Heartbeats wait meanwhile, and a broker evicts a member that it has not heard from for {session:g} s. A handler "
    "must not compute or block for long on the event loop: declare it without async, or use a thread or a process"
)


class LoopLag:
    """Measures how late the timers of the loop are; a thread names the line at which the loop is while none comes.

    The loop counts as late when its lag exceeds a fifth of the shortest session timeout. With virtual time there is
    nothing to measure.
    """

    def __init__(self, turns: Turns) -> None:
        self.is_late: bool = False
        self._turns = turns
        self._session_timeout_sec: float | None = None
        # Lags of the last minute and their times; a lag that a larger one followed is left out.
        self._worst: deque[tuple[float, float]] = deque()
        self._warned_at = float("-inf")
        self._place = ""
        # Written by the loop, read by the thread.
        self._ticks = 0
        self._loop_thread = 0
        self._loop: asyncio.AbstractEventLoop
        self._due = 0.0
        self._computed_sec = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = threading.Event()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to measure."""
        self._loop = loop
        if clock_of(loop) is time.monotonic:
            self._loop_thread = threading.get_ident()
            self._schedule()
            # A daemon, so it does not keep the process alive; it sleeps as long as the timers fire in time.
            threading.Thread(target=self._watch, name="kafka-loop-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop measuring, and end the thread without waiting for it."""
        self._is_over.set()
        if self._timer is not None:
            self._timer.cancel()

    def note_session(self, timeout_sec: float) -> None:
        """Take note of a consumer's session timeout."""
        self._session_timeout_sec = min(self._session_timeout_sec or timeout_sec, timeout_sec)

    @property
    def session_timeout_sec(self) -> float:
        """The shortest of the consumers'."""
        return self._session_timeout_sec or _DEFAULT_SESSION_TIMEOUT_SEC

    @property
    def limit_sec(self) -> float:
        """The lag from which the loop counts as late."""
        return self.session_timeout_sec / 5

    @property
    def worst_sec(self) -> float:
        """The largest lag within the last minute."""
        while self._worst and self._worst[0][1] < time.monotonic() - REMEMBERED_SEC:
            self._worst.popleft()
        return self._worst[0][0] if self._worst else 0.0

    def problems(self) -> list[str]:
        """Say that the loop was so late that the group may evict its members."""
        worst_sec = self.worst_sec
        if worst_sec < self.session_timeout_sec / 2:
            return []
        where = f", at {self._place}" if self._place else ""
        late = f"the event loop was {worst_sec:.1f} s late within the last minute{where}"
        return [f"{late}: members are evicted after {self.session_timeout_sec:g} s without a heartbeat"]

    # -- on the loop ---------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        self._due = time.monotonic() + TICK_SEC
        self._computed_sec = self._turns.computed_sec
        self._timer = self._loop.call_later(TICK_SEC, self._tick, context=contextvars.Context())

    def _tick(self) -> None:
        now = time.monotonic()
        self._ticks += 1
        self._loop_thread = threading.get_ident()
        lag_sec = max(0.0, now - self._due)
        while self._worst and self._worst[-1][0] <= lag_sec:
            self._worst.pop()
        self._worst.append((lag_sec, now))
        self.is_late = lag_sec >= self.limit_sec
        if self.is_late:
            self._warn(lag_sec, now)
        elif self.worst_sec < self.limit_sec:
            self._place = ""
        self._schedule()

    def _warn(self, lag_sec: float, now: float) -> None:
        if now - self._warned_at >= REMEMBERED_SEC:
            share = min(1.0, (self._turns.computed_sec - self._computed_sec) / (lag_sec + TICK_SEC))
            advice = _ADVICE.format(session=self.session_timeout_sec)
            logger.warning(
                "The event loop is %.1f s late; handlers have used %.0f %% of the time. %s.",
                lag_sec,
                share * 100,
                advice,
            )
        self._warned_at = now

    # -- in the thread -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        seen, missed_sec, is_logged = -1, 0.0, False
        # This thread waits no more often than it has to. When it wakes, it needs the GIL, and until it gets that, each
        # release of the GIL by the loop's thread wakes it in vain: FastStream causes one for each record.
        # Counted by the waits of this thread: a process that was suspended as a whole is not reported.
        while not self._is_over.wait(wait_sec := max(TICK_SEC, self.limit_sec / 2)) and not self._loop.is_closed():
            if self._ticks != seen or not self._loop.is_running():
                seen, missed_sec, is_logged = self._ticks, 0.0, False
                continue
            missed_sec += wait_sec
            frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - documented, in spite of its name
            if missed_sec >= self.limit_sec and not is_logged and frame is not None:
                is_logged = True
                self._place = blocked_at(frame)
                advice = _ADVICE.format(session=self.session_timeout_sec)
                logger.error("The event loop has been blocked for %.1f s at %s. %s.", missed_sec, self._place, advice)


# Modules that call handlers: frames further in belong to the application.
_CALLERS = tuple(
    str(Path(path).parent)
    for path in (asyncio.__file__, faststream.__file__, fast_depends.__file__, Path(__file__).parent)
)


def blocked_at(frame: FrameType) -> str:
    """Name the line at which a thread enters the application's code from the loop, and the innermost two."""
    frames = [each for each, _ in traceback.walk_stack(frame)]
    inside = list(itertools.takewhile(lambda each: not each.f_code.co_filename.startswith(_CALLERS), frames)) or frames
    inside.reverse()
    return places([inside[0], *inside[1:][-2:]])
