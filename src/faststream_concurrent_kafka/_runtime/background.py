"""Tasks and callbacks that do not run in the context (of `contextvars`) of the code that creates them."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from typing import Any


logger = logging.getLogger("faststream_concurrent_kafka")


class Background:
    """Creates tasks and callbacks in the context in which the `Background` itself was created.

    asyncio copies the context of the caller, which may be a record's task: the next record would see the context
    variables that this record's handler has set, and would keep their values alive.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.context: contextvars.Context = contextvars.copy_context()
        # asyncio itself holds tasks only weakly.
        self._helpers: set[asyncio.Task[Any]] = set()

    def create_task(
        self, work: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        """Create a task in a copy of the context, or of the given one."""
        # Not by `create_task(context=...)`, which not every task factory supports. A copy, because an eager task may
        # call this again before `run` returns, and a context can't be entered twice.
        return (self.context if context is None else context).copy().run(self._loop.create_task, work, name=name)

    def start_helper(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine in a task that is kept alive and whose failure is logged."""
        helper = self.create_task(work, name="kafka-concurrent-helper")
        self._helpers.add(helper)
        helper.add_done_callback(self._helper_ended, context=self.context)
        return helper

    def _helper_ended(self, helper: asyncio.Task[Any]) -> None:
        self._helpers.discard(helper)
        if not helper.cancelled() and (error := helper.exception()) is not None:
            logger.error("A background task has failed", exc_info=error)

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> asyncio.Handle:
        """Call `callback` in the next turn of the loop, in the context."""
        return self._loop.call_soon(callback, *arguments, context=self.context)
