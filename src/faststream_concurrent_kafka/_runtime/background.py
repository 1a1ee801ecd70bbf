"""Tasks and callbacks in contexts of their own, not in that of the code which creates them."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """Creates tasks and callbacks in the context (of `contextvars`) in which it was made itself.

    asyncio would copy the context of the caller, which may be the task of a record: what its handler has set would be
    seen by the next record, and kept alive.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.context: contextvars.Context = contextvars.copy_context()

    def create_task(
        self, work: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        """Create a task in a copy of the context, or of another one."""
        # Not by `create_task(context=...)`, which not every task factory takes. A copy, because one that starts tasks
        # eagerly may come here again from the inside, and a context can't be entered twice.
        return (self.context if context is None else context).copy().run(self._create, work, name)

    def _create(self, work: Coroutine[Any, Any, Any], name: str | None) -> asyncio.Task[Any]:
        return self._loop.create_task(work, name=name)

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> asyncio.Handle:
        """Call something at the next turn of the loop, in the context."""
        return self._loop.call_soon(callback, *arguments, context=self.context)
