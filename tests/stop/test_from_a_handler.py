"""Exceptions by which a handler stops its subscriber, or the whole application."""

import signal

import pytest

from testkit.brokers import committed, wait_until


# The batch timer is so long that only the stop commits.
SETTINGS = {"concurrency_limit": 0, "commit_batch_timeout_sec": 100}


@pytest.mark.parametrize("host", ["faststream", "plain"])
async def test_stop_consume_drains_and_commits_its_subscriber_while_another_goes_on(scene, host):
    other = await scene.second_topic()
    first = scene.start(host=host, second_topic=other.topic, settings=SETTINGS)
    journal = first.journal
    before = await other.add(20)
    async with scene.feed.flowing():
        await first.until(lambda: journal.in_flight >= 24 and len(journal.handled) >= 24, 30, "it handles")
        await scene.feed.add(1, seconds=0, then="StopConsume")
        # The bystander gets the partitions, and it does not commit.
        await wait_until(scene.is_committed_as_handled, 20, lambda: first.story("drained, committed"))
        after = await other.add(20)
        await first.until(lambda: set(before + after) <= set(journal.handled), 30, "the other one goes on")
    first.send(signal.SIGTERM)
    assert await first.exit_code() == (0 if host == "faststream" else -signal.SIGTERM)
    assert not journal.cancelled
    await scene.assert_nothing_lost_or_redelivered(others={other.topic})
    assert sum((await committed(scene.bootstrap_servers, scene.group, other.topic)).values()) == len(before + after)


@pytest.mark.parametrize("error", ["StopApplication", "SystemExit"])
async def test_an_application_that_a_handler_ends_drains_and_commits(scene, error):
    hosts = ["faststream", "fastapi-uvicorn"]
    if error == "StopApplication":
        hosts += ["asgi", "asgi-uvicorn", "fastapi-router-uvicorn"]
    for host in hosts:
        first = scene.start(host=host, settings=SETTINGS)
        async with scene.feed.flowing():
            await first.until(
                lambda it=first.journal: it.in_flight >= 24 and len(it.ended) >= 24, 30, f"{host} handles"
            )
            await scene.feed.add(1, seconds=0, then=error)
            if host != "faststream":
                # FastStream leaves a server running, even under AsgiFastStream.run().
                await wait_until(scene.is_committed_as_handled, 20, lambda it=first: it.story("committed"))
                first.send(signal.SIGTERM)
            code = await first.exit_code()
        assert code == (0 if host == "faststream" else -signal.SIGTERM), first.story("it ends well")
        assert "Traceback" not in first.output
        await scene.assert_stopped_cleanly(first)
    await scene.assert_nothing_lost_or_redelivered()
