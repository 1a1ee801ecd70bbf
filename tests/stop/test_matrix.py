"""Every way to run the library, and every way to end it: nothing is lost, nothing is redelivered (I28).

The services run one after the other in one group: each would handle the records that its predecessor left again.
"""

import signal

import pytest

from tests.stop.driver import Service
from tests.stop.scene import Scene


HOSTS = ["faststream", "asgi", "asgi-uvicorn", "fastapi-uvicorn", "fastapi-router-uvicorn", "plain"]
WITH_HOOKS = ["faststream", "asgi", "asgi-uvicorn", "fastapi-router-uvicorn"]
STOPS = ["SIGTERM", "SIGINT", "SIGQUIT", "broker.stop"]
DOZENS = 24


async def stopped(scene: Scene, stop: str, *, in_mid_stream: bool = True, **plan) -> tuple[Service, int]:
    """Start a service, stop it while it handles dozens of records (or right after the last), and check the result.

    The caller has to check once, at the end, that no record of the scene was lost or redelivered.
    """
    # In the second case the batch timer is so long that only the stop commits.
    settings = {"concurrency_limit": 48, "commit_batch_timeout_sec": 0.2 if in_mid_stream else 100}
    first = scene.start(settings=settings, **plan)
    journal = first.journal
    if in_mid_stream:
        async with scene.feed.flowing():
            await first.until(lambda: journal.in_flight >= DOZENS and len(journal.ended) >= DOZENS, 30, "it handles")
            code = await _stop(first, stop)
    else:
        added = set(await scene.feed.add(48, seconds=0.1))
        await first.until(lambda: set(journal.handled) == added, 30, "it has handled all")
        code = await _stop(first, stop)
    await scene.assert_stopped_cleanly(first)
    return first, code


async def _stop(first: Service, stop: str) -> int:
    if stop == "broker.stop":
        await first.ask()
        first.send(signal.SIGTERM)
    else:
        first.send(signal.Signals[stop])
    return await first.exit_code()


@pytest.mark.parametrize("host", HOSTS)
async def test_a_stop_while_dozens_are_handled_loses_and_redelivers_nothing(scene, host):
    for stop in STOPS:
        await stopped(scene, stop, host=host)
    await scene.assert_nothing_lost_or_redelivered()


@pytest.mark.parametrize("host", WITH_HOOKS)
async def test_the_same_holds_where_hooks_initialise_and_stop_instead_of_a_lifespan(scene, host):
    for stop in ("SIGTERM", "SIGQUIT", "broker.stop"):
        await stopped(scene, stop, host=host, where="hooks")
    await scene.assert_nothing_lost_or_redelivered()


@pytest.mark.parametrize("host", HOSTS)
async def test_a_stop_right_after_the_last_record_commits_it(scene, host):
    for stop in STOPS:
        await stopped(scene, stop, host=host, in_mid_stream=False)
    await scene.assert_nothing_lost_or_redelivered()
