"""What no fault may leave behind: a task, an unretrieved exception, a traceback of the library (I31)."""

import asyncio
import gc
import logging
import traceback
from contextlib import asynccontextmanager
from pathlib import Path

from testkit.brokers import wait_until


@asynccontextmanager
async def calm(caplog):
    """Fail if what happens inside leaves a task, or an exception to the event loop, or makes us log a traceback."""
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    unseen = []
    previous = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: unseen.append(context))

    def left():
        return {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}

    try:
        with caplog.at_level(logging.INFO, "faststream_concurrent_kafka"):
            yield
            await wait_until(lambda: not left(), 5, lambda: f"tasks left behind: {left()}")
        # A task says that its exception was never retrieved when it is thrown away.
        gc.collect()
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(previous)
        for task in left():
            task.cancel()
    assert not unseen, unseen
    records = caplog.get_records("setup") + caplog.get_records("call")
    # What a handler has raised is the application's, and logged where FastStream has no logger.
    tracebacks = [
        each
        for each in records
        if each.name.startswith("faststream_concurrent_kafka") and each.exc_info and not _is_of_a_handler(each)
    ]
    assert not tracebacks, [(each.getMessage(), each.exc_info) for each in tracebacks]
    complaints = [each.getMessage() for each in records if each.name == "asyncio" and each.levelno >= logging.ERROR]
    assert not complaints, complaints


def _is_of_a_handler(record):
    """Whether the error of a line in the log was raised by code of the tests."""
    innermost = traceback.extract_tb(record.exc_info[2])[-1]
    return Path(innermost.filename).is_relative_to(Path(__file__).parents[1])
