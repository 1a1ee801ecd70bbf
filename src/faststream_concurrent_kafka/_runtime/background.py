"""Tasks and callbacks that do not run in the context (of `contextvars`) of the code that creates them."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """Creates tasks and callbacks in the context in which the `Background` itself was created.

    asyncio copies the context of the caller, which may be a record's task: the next record would see the context
    variables that this record's handler has set, and would keep their values alive.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.context: contextvars.Context = contextvars.copy_context()

    def create_task(
        self, work: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        """Create a task in a copy of the context, or of the given one."""
        # Not by `create_task(context=...)`, which not every task factory supports. A copy, because an eager task may
        # call this again before `run` returns, and a context can't be entered twice.
        return (self.context if context is None else context).copy().run(self._create, work, name)

    def _create(self, work: Coroutine[Any, Any, Any], name: str | None) -> asyncio.Task[Any]:
        return self._loop.create_task(work, name=name)

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> asyncio.Handle:
        """Call `callback` in the next turn of the loop, in the context."""
        return self._loop.call_soon(callback, *arguments, context=self.context)
