"""Signals: ours never stands in the way of somebody else's, and never changes how a process ends."""

import signal

import pytest

from tests.stop.test_matrix import stopped


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGQUIT"])
async def test_a_signal_that_arrives_in_the_middle_of_a_handler_still_drains(scene, number):
    first = scene.start(host="plain", settings={"commit_batch_timeout_sec": 100})
    await scene.feed.add(40)
    await scene.feed.add(1, signal=number)
    assert await first.exit_code() == -signal.Signals[number]
    await scene.assert_nothing_lost_or_redelivered(first)


@pytest.mark.parametrize(
    ("host", "own_handlers", "code"),
    [
        ("faststream", "signal, before", 0),
        ("faststream", "signal, after", 0),
        ("asgi-uvicorn", "signal, before", -signal.SIGTERM),
        ("asgi-uvicorn", "signal, after", -signal.SIGTERM),
        ("fastapi-uvicorn", "signal, after", -signal.SIGTERM),
        ("plain", "signal, before", 0),
        ("plain", "signal, after", -signal.SIGTERM),
        ("plain", "loop, before", 0),
        ("plain", "loop, after", 0),
    ],
)
async def test_a_handler_of_the_programs_own_runs_once_beside_the_hosts_and_ours(scene, host, own_handlers, code):
    first, ended_with = await stopped(scene, "SIGTERM", host=host, own_handlers=own_handlers)
    assert first.journal.notes.count("own SIGTERM") == 1, first.story("its own handler ran")
    assert ended_with == code


@pytest.mark.parametrize(
    ("host", "number", "loop"),
    [
        ("plain", "SIGTERM", "asyncio"),
        ("plain", "SIGINT", "asyncio"),
        ("plain", "SIGQUIT", "asyncio"),
        ("plain", "SIGTERM", "uvloop"),
        ("plain", "SIGINT", "uvloop"),
        ("faststream", "SIGINT", "asyncio"),
        ("faststream", "SIGQUIT", "asyncio"),
        ("asgi", "SIGINT", "asyncio"),
        ("asgi-uvicorn", "SIGINT", "asyncio"),
        ("asgi-uvicorn", "SIGTERM", "asyncio"),
    ],
)
async def test_a_process_ends_with_the_exit_code_that_it_had_without_the_library(lonely_scene, host, number, loop):
    scene = lonely_scene
    processes = [
        scene.start(host=host, loop=loop, group=scene.group + where, where=where) for where in ("lifespan", "nowhere")
    ]
    await scene.feed.add(4, seconds=0)
    for process in processes:
        await process.until(lambda it=process: set(it.journal.ended) == scene.feed.places, 30, "it handles")
        process.send(signal.Signals[number])
    codes = [await process.exit_code() for process in processes]
    assert codes[0] == codes[1]
