"""A task factory that starts tasks eagerly, as `asyncio.eager_task_factory` does from Python 3.12 on."""

import asyncio
import contextvars
import sys
from asyncio.tasks import _PyTask  # ty: ignore[missing-module-member]
from collections.abc import Callable
from typing import Any


def _start_now(loop: Any, coro: Any, **options: Any) -> Any:
    """Create a task that has taken its first step already."""
    steps: list[tuple[Callable[[], None], contextvars.Context]] = []
    loop.call_soon = lambda step, *, context: steps.append((step, context))
    try:
        task = _PyTask(coro, loop=loop, **options)
    finally:
        del loop.call_soon
    ((step, context),) = steps
    creator = asyncio.current_task(loop)
    if creator is not None:
        asyncio.tasks._leave_task(loop, creator)
    try:
        context.run(step)
    finally:
        if creator is not None:
            asyncio.tasks._enter_task(loop, creator)
    return task


eager_task_factory: Any = asyncio.eager_task_factory if sys.version_info >= (3, 12) else _start_now


def eager_factory_without_options(loop: asyncio.AbstractEventLoop, coro: Any) -> Any:
    """The same as a factory of the oldest kind, which takes neither a context nor a name."""
    return eager_task_factory(loop, coro)
