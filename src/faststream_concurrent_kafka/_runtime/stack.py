"""The lines at which a task is suspended."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import PurePath
from types import FrameType
from typing import Any

from faststream_concurrent_kafka._runtime.turns import paced


_MOST_FRAMES = 3


def suspended_at(task: asyncio.Task[Any]) -> str:
    """Name the innermost lines at which a task is suspended, outermost first; empty if it is not.

    Follows the coroutines of this task only: for code in a thread or another task, it names the await.
    """
    return places(frames_of(task))


def places(frames: Sequence[FrameType]) -> str:
    """Name the innermost lines of some frames, outermost first."""
    return " > ".join(
        f"{PurePath(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
        for frame in frames[-_MOST_FRAMES:]
    )


def frames_of(task: asyncio.Task[Any]) -> list[FrameType]:
    """Return the frames of a suspended or running task, outermost first."""
    frames: list[FrameType] = []
    awaited: Any = task.get_coro()
    if getattr(awaited, "cr_running", False):
        return _running(awaited.cr_frame)
    if not getattr(awaited, "cr_suspended", True):
        # Not started.
        return frames
    while awaited is not None:
        frame = _first(awaited, "cr_frame", "gi_frame")
        if isinstance(frame, FrameType):
            if frame.f_code is paced.__code__:
                # It yields what the coroutine yields.
                awaited = frame.f_locals["coroutine"]
                continue
            frames.append(frame)
        awaited = _first(awaited, "cr_await", "gi_yieldfrom")
    return frames


def _running(outermost: FrameType) -> list[FrameType]:
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(2)  # noqa: SLF001 - nothing else leads from the innermost frame outwards
    while frame is not None:
        frames.append(frame)
        if frame is outermost:
            return frames[::-1]
        frame = frame.f_back
    # The task runs in another thread.
    return []


def _first(thing: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(thing, name, None)) is not None), None)
