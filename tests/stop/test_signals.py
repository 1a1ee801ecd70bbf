"""The library's signal handlers never replace the program's or the host's, nor change the exit code of a process."""

import signal

import pytest

from tests.stop.test_matrix import stopped


async def test_a_signal_that_arrives_in_the_middle_of_a_handler_still_drains(scene):
    for number in ("SIGTERM", "SIGINT", "SIGQUIT"):
        first = scene.start(host="plain", settings={"commit_batch_timeout_sec": 100})
        await scene.feed.add(40)
        await scene.feed.add(1, signal=number)
        assert await first.exit_code() == -signal.Signals[number]
        await scene.assert_stopped_cleanly(first)
    await scene.assert_nothing_lost_or_redelivered()


@pytest.mark.parametrize(
    ("host", "codes"),
    [
        ("faststream", {"signal, before": 0, "signal, after": 0}),
        ("asgi-uvicorn", {"signal, before": -signal.SIGTERM, "signal, after": -signal.SIGTERM}),
        ("fastapi-uvicorn", {"signal, after": -signal.SIGTERM}),
        (
            "plain",
            {"signal, before": 0, "signal, after": -signal.SIGTERM, "loop, before": 0, "loop, after": 0},
        ),
    ],
)
async def test_a_handler_of_the_programs_own_runs_once_beside_the_hosts_and_ours(scene, host, codes):
    for own_handlers, code in codes.items():
        first, ended_with = await stopped(scene, "SIGTERM", host=host, own_handlers=own_handlers)
        assert first.journal.notes.count("own SIGTERM") == 1, first.story("its own handler ran")
        assert ended_with == code
    await scene.assert_nothing_lost_or_redelivered()


@pytest.mark.parametrize(
    ("host", "stops"),
    [
        ("plain", ["SIGTERM asyncio", "SIGINT asyncio", "SIGQUIT asyncio", "SIGTERM uvloop", "SIGINT uvloop"]),
        ("faststream", ["SIGINT asyncio", "SIGQUIT asyncio"]),
        ("asgi", ["SIGINT asyncio"]),
        ("asgi-uvicorn", ["SIGINT asyncio", "SIGTERM asyncio"]),
    ],
)
async def test_a_process_ends_with_the_exit_code_that_it_had_without_the_library(lonely_scene, host, stops):
    """The first process without the library is started as a user does, not forked."""
    scene = lonely_scene
    await scene.feed.add(4, seconds=0)
    pairs = [
        [
            scene.start(
                host=host,
                loop=stop.split()[1],
                group=f"{scene.group} {stop} {where}",
                where=where,
                forked=where == "lifespan" or stop != stops[0],
            )
            for where in ("lifespan", "nowhere")
        ]
        for stop in stops
    ]
    for stop, pair in zip(stops, pairs, strict=True):
        for process in pair:
            await process.until(lambda it=process: set(it.journal.handled) == scene.feed.places, 30, "it handles")
            process.send(signal.Signals[stop.split()[0]])
        codes = [await process.exit_code() for process in pair]
        assert codes[0] == codes[1], stop
