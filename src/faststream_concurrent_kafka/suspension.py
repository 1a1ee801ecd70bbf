"""Where the code of a task is waiting."""

import asyncio
from pathlib import PurePath
from typing import Any


_MOST_FRAMES = 3


def suspended_at(task: asyncio.Task[Any]) -> str:
    """Name the innermost lines at which a task is suspended, outermost first; empty if it is not.

    They are followed from coroutine to coroutine, so what runs in a thread or another task is seen as the wait for it.
    """
    places: list[str] = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = _first(awaited, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            places.append(f"{PurePath(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}")
        awaited = _first(awaited, "cr_await", "gi_yieldfrom", "ag_await")
    return " > ".join(places[-_MOST_FRAMES:])


def _first(thing: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(thing, name, None)) is not None), None)
