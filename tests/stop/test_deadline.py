"""One deadline is valid for the whole stop, whatever the handlers, the caller and the broker do (I29)."""

import asyncio
import signal
import time
from contextlib import AsyncExitStack

import pytest

from testkit.brokers import committed
from tests.stop.scene import Scene, tasks_left


TIMEOUT_SEC = 1.0
# In addition to the timeout: cancelling, a last commit, leaving the group, the interpreter's exit on a busy machine.
ALLOWANCE_SEC = 5.0
SETTINGS = {"shutdown_timeout_sec": TIMEOUT_SEC, "concurrency_limit": 0, "commit_batch_timeout_sec": 0.2}


async def with_handlers_that_outlast_the_stop(scene, shutdown_timeout_sec=TIMEOUT_SEC, **plan):
    """Start a service that handles many records and hangs in eight; return it and those eight."""
    first = scene.start(settings=SETTINGS | {"shutdown_timeout_sec": shutdown_timeout_sec}, **plan)
    await scene.feed.add(40, seconds=0.1)
    endless = set(await scene.feed.add(8, seconds=600))
    await scene.feed.add(40, seconds=0.1)
    handled = scene.feed.places - endless
    await first.until(
        lambda: endless <= set(first.journal.started) and handled <= set(first.journal.handled),
        30,
        "only eight are left",
    )
    return first, endless


async def assert_given_up(scene, first, endless):
    """Check that the next process gets the endless records, and none before them."""
    journal = first.journal.read()
    assert set(journal.cancelled) == endless, first.story("cancelled and awaited")
    for topic, partition, offset in endless:
        assert f"{topic}[{partition}]@{offset}" in first.output, first.story("logged")
    assert not tasks_left(first), first.story("no task is left")
    assert await scene.members() == 0, first.story("it has left the group")
    firsts = {}
    for place in sorted(endless):
        firsts.setdefault(place.partition, place.offset)
    offsets = await committed(scene.bootstrap_servers, scene.group, scene.topic)
    assert offsets == firsts, first.story("committed up to the first that was given up")
    successor = await scene.assert_at_least_once(first)
    again = set(successor.journal.started) & set(journal.started)
    assert endless <= again
    assert all(place.offset >= firsts[place.partition] for place in again), first.story("nothing before them")


@pytest.mark.parametrize(
    ("host", "number"),
    [
        ("faststream", "SIGTERM"),
        ("asgi-uvicorn", "SIGQUIT"),
        ("fastapi-uvicorn", "SIGTERM"),
        ("plain", "SIGTERM"),
        ("plain", "SIGINT"),
    ],
)
async def test_handlers_that_outlast_the_stop_are_cancelled_logged_and_left_to_the_next(scene, host, number):
    first, endless = await with_handlers_that_outlast_the_stop(scene, host=host)
    begin = time.monotonic()
    first.send(signal.Signals[number])
    await first.exit_code()
    assert TIMEOUT_SEC < time.monotonic() - begin < TIMEOUT_SEC + ALLOWANCE_SEC
    await assert_given_up(scene, first, endless)


@pytest.mark.parametrize(
    "request_",
    ["broker.stop", "broker.stop twice at once", "broker.stop cancelled", "processing first", "processing last, twice"],
)
async def test_the_deadline_holds_for_each_way_in_which_a_program_can_stop(scene, request_):
    first, endless = await with_handlers_that_outlast_the_stop(scene, host="plain", on_request=request_)
    begin = time.monotonic()
    await first.ask()
    assert TIMEOUT_SEC < time.monotonic() - begin < TIMEOUT_SEC + ALLOWANCE_SEC
    assert await first.exit_code() == 0, first.story("it ends well")
    await assert_given_up(scene, first, endless)


async def test_a_second_signal_ends_a_plain_script_at_once(scene):
    first, _ = await with_handlers_that_outlast_the_stop(scene, host="plain", shutdown_timeout_sec=60)
    first.send(signal.SIGTERM)
    await first.until(lambda: "SIGTERM" in first.output, 10, "it has begun to stop")
    begin = time.monotonic()
    first.send(signal.SIGTERM)
    assert await first.exit_code() == -signal.SIGTERM
    assert time.monotonic() - begin < ALLOWANCE_SEC


@pytest.mark.cluster
@pytest.mark.parametrize(("host", "fault"), [("faststream", "kill"), ("plain", "pause"), ("asgi-uvicorn", "pause")])
async def test_the_deadline_holds_while_the_broker_is_down(own_broker, new_topic, tmp_path, host, fault):
    async with AsyncExitStack() as stack:
        scene = await Scene.set_up(stack, own_broker, new_topic, tmp_path, bystanders=0)
        first = scene.start(host=host, settings=SETTINGS)
        await scene.feed.add(100)
        await first.until(lambda: first.journal.in_flight >= 24 and len(first.journal.handled) >= 24, 30, "it handles")
        await scene.feed.pause()
        getattr(own_broker, fault)(0)
        begin = time.monotonic()
        first.send(signal.SIGTERM)
        await first.exit_code()
        took_sec = time.monotonic() - begin
        await asyncio.to_thread(own_broker.restart if fault == "kill" else own_broker.resume, 0)
        assert took_sec < TIMEOUT_SEC + ALLOWANCE_SEC, first.story("it ends in time")
        assert not first.journal.cancelled, first.story("the handlers have ended well before")
        await scene.feed.go_on()
        await scene.assert_at_least_once(first)
