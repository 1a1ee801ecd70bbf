"""No fault may leave a task, an unretrieved exception, or a logged traceback of the library (I31)."""

import asyncio
import gc
import logging
import traceback
from contextlib import asynccontextmanager
from pathlib import Path

from testkit.brokers import wait_until


@asynccontextmanager
async def calm(caplog):
    """Fail if the block leaves a task or an unretrieved exception, or if the library logs a traceback in it."""
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
        # asyncio reports an unretrieved exception when the task is freed.
        gc.collect()
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(previous)
        for task in left():
            task.cancel()
    assert not unseen, unseen
    records = caplog.get_records("setup") + caplog.get_records("call")
    # The library logs a handler's exception if FastStream has no logger.
    tracebacks = [
        each
        for each in records
        if each.name.startswith("faststream_concurrent_kafka") and each.exc_info and not _is_of_a_handler(each)
    ]
    assert not tracebacks, [(each.getMessage(), each.exc_info) for each in tracebacks]
    complaints = [each.getMessage() for each in records if each.name == "asyncio" and each.levelno >= logging.ERROR]
    assert not complaints, complaints


def _is_of_a_handler(record):
    """Whether code of the tests has raised the exception of a log record."""
    innermost = traceback.extract_tb(record.exc_info[2])[-1]
    return Path(innermost.filename).is_relative_to(Path(__file__).parents[1])
