"""Stopping in every order, stopping twice, and starting again after a stop (I28)."""

import signal

import pytest

from testkit.brokers import wait_until
from tests.stop.test_matrix import HOSTS, stopped


@pytest.mark.parametrize("host", ["faststream", "plain"])
async def test_each_order_of_stopping_loses_and_redelivers_nothing(scene, host):
    for on_request in (
        "broker.stop twice",
        "broker.stop twice at once",
        "broker.stop cancelled",
        "processing first",
        "processing last, twice",
    ):
        first, _ = await stopped(scene, "broker.stop", host=host, on_request=on_request)
        assert not [note for note in first.journal.notes if note.startswith("request failed")], first.story("no error")
    await scene.assert_nothing_lost_or_redelivered()


async def test_a_stop_whose_caller_was_cancelled_drains_commits_and_leaves_all_the_same(scene):
    settings = {"concurrency_limit": 48, "commit_batch_timeout_sec": 100}
    first = scene.start(on_request="broker.stop cancelled, nothing else", settings=settings)
    async with scene.feed.flowing():
        await first.until(lambda: first.journal.in_flight >= 24 and len(first.journal.handled) >= 24, 30, "it handles")
        await first.ask()

        async def has_left():
            return not first.journal.read().in_flight and await scene.members() == 0

        await wait_until(has_left, 5, lambda: first.story("it has left the group by itself"))
        assert await scene.is_committed_as_handled()
    first.send(signal.SIGTERM)
    assert await first.exit_code() == 0
    await scene.assert_nothing_lost_or_redelivered()


@pytest.mark.parametrize("host", ["plain, again", "plain, a loop each"])
async def test_the_same_broker_starts_again_after_a_stop_in_the_same_loop_and_in_another(scene, host):
    first = scene.start(host=host, settings={"concurrency_limit": 48, "commit_batch_timeout_sec": 0.2})
    journal = first.journal
    async with scene.feed.flowing():
        await first.until(lambda: journal.in_flight >= 24 and len(journal.handled) >= 24, 30, "it handles")
        await first.ask()
        await first.until(lambda: "round ended" in journal.notes, 30, "the first round is over")
        ended = len(journal.handled)
        assert not journal.in_flight
        await first.until(
            lambda: journal.in_flight >= 24 and len(journal.handled) >= ended + 24, 30, "it handles again"
        )
        first.send(signal.SIGUSR1)
        assert await first.exit_code() == 0, first.story("the second round is over")
    assert journal.notes.count("main ended") == (2 if host == "plain, a loop each" else 1)
    await scene.assert_nothing_lost_or_redelivered()


async def test_without_a_bystander_too_a_stop_loses_and_redelivers_nothing(lonely_scene):
    for host in HOSTS:
        await stopped(lonely_scene, "SIGTERM", host=host)
    await lonely_scene.assert_nothing_lost_or_redelivered()


@pytest.mark.parametrize("stop", ["SIGTERM", "SIGQUIT"])
async def test_under_uvloop_too_a_stop_loses_and_redelivers_nothing(scene, stop):
    for host in ("faststream", "asgi-uvicorn", "plain"):
        await stopped(scene, stop, host=host, loop="uvloop")
    await scene.assert_nothing_lost_or_redelivered()


async def test_in_a_rolling_restart_each_record_is_handled_once_while_the_group_goes_on(lonely_scene):
    scene = lonely_scene
    settings = {"concurrency_limit": 48, "commit_batch_timeout_sec": 0.2}
    old, new = scene.start(settings=settings), scene.start(settings=settings)
    both = (old.journal, new.journal)
    async with scene.feed.flowing():
        for each in (old, new):
            await each.until(lambda it=each.journal: it.in_flight >= 12 and len(it.handled) >= 12, 30, "both handle")
        old.send(signal.SIGTERM)
        assert await old.exit_code() == 0
        ended = len(new.journal.read().handled)
        await new.until(lambda: len(new.journal.handled) >= ended + 48, 30, "the other one goes on")
    await new.until(lambda: scene.feed.places <= {*old.journal.handled, *new.journal.handled}, 30, "all is handled")
    new.send(signal.SIGTERM)
    assert await new.exit_code() == 0
    assert (both[0].started + both[1].started).total() == len(scene.feed.places), new.story("each record once")
    await wait_until(scene.is_committed, 5, "everything is committed")
