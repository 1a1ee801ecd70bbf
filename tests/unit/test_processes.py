"""Process-wide state: signal handlers, and forks."""

import os
import signal
import subprocess
import sys
import textwrap
import traceback

import pytest
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import (
    KafkaConcurrentHandler,
    initialize_concurrent_processing,
    is_kafka_handler_healthy,
    stop_concurrent_processing,
)
from faststream_concurrent_kafka.testing import run_virtual


NEVER_STOPPED = """
    import asyncio, os, resource, signal
    from faststream import ContextRepo
    from faststream_concurrent_kafka import initialize_concurrent_processing

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    async def main():
        await initialize_concurrent_processing(ContextRepo())
        raise RuntimeError("the application does not start")

    try:
        asyncio.run(main())
    except RuntimeError:
        pass
"""
CALLED_BY_ANOTHER = """
    ours = signal.getsignal(signal.{number})
    signal.signal(signal.{number}, lambda *arguments: ours(*arguments))
"""
RAISED = """
    os.kill(os.getpid(), signal.{number})
    while True:
        signal.pause()
"""


def ended_with(*parts: str, number: str) -> int:
    """Run a program that sends itself a signal; return its exit code."""
    program = "".join(textwrap.dedent(part) for part in parts).replace("{number}", number)
    return subprocess.run([sys.executable, "-c", program], timeout=60, check=False, capture_output=True).returncode


@pytest.mark.parametrize("number", ["SIGTERM", "SIGQUIT", "SIGINT"])
def test_a_signal_takes_its_course_when_the_loop_has_ended_without_a_stop(number):
    """The guard can't drain any more, and the process must end by the signal."""
    assert ended_with(NEVER_STOPPED, RAISED, number=number) == -signal.Signals[number]


def test_a_signal_takes_its_course_when_another_handler_hands_it_on_to_ours():
    """The other handler has replaced the library's and calls it after the end of the loop."""
    assert ended_with(NEVER_STOPPED, CALLED_BY_ANOTHER, RAISED, number="SIGTERM") == -signal.SIGTERM


def exit_code_of_child(run) -> int:
    """Run a function in a forked child; 0 when it returns, 1 when it raises."""
    child = os.fork()
    if child == 0:
        try:
            run()
        except BaseException:  # noqa: BLE001 - the child must end here, or it would go on with the test run
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def initialized_in_parent(run) -> int:
    """Fork while concurrent processing runs, as `multiprocessing` does by default on Linux up to Python 3.13."""
    context = KafkaBroker().context
    await initialize_concurrent_processing(context, concurrency_limit=7)
    try:
        code = exit_code_of_child(lambda: run(context))
        assert is_kafka_handler_healthy(context)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        return code
    finally:
        await stop_concurrent_processing(context)


def test_a_forked_child_has_no_handler_and_can_have_one_of_its_own():
    """It may use other settings, in its own event loop, with any context."""

    def child(inherited):
        async def use():
            own = KafkaBroker().context
            await initialize_concurrent_processing(own, concurrency_limit=3)
            assert is_kafka_handler_healthy(own)
            assert not is_kafka_handler_healthy(inherited)
            await stop_concurrent_processing(own)

        assert KafkaConcurrentHandler.running() is None
        assert not is_kafka_handler_healthy(inherited)
        assert not is_kafka_handler_healthy(KafkaBroker().context)
        run_virtual(use())

    assert run_virtual(initialized_in_parent(child)) == 0


def test_a_signal_to_a_forked_child_is_the_childs_alone():
    """A wakeup through the shared file descriptor would wake the parent's loop, and the child would not end."""
    assert run_virtual(initialized_in_parent(lambda _: signal.raise_signal(signal.SIGTERM))) == -signal.SIGTERM
