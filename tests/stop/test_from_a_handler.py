"""Exceptions by which a handler stops its subscriber, or the whole application."""

import signal

import pytest

from testkit.brokers import committed, wait_until


# So late that only the stop itself can commit.
SETTINGS = {"concurrency_limit": 0, "commit_batch_timeout_sec": 100}


@pytest.mark.parametrize("host", ["faststream", "plain"])
async def test_stop_consume_drains_and_commits_its_subscriber_while_another_goes_on(scene, host):
    other = await scene.second_topic()
    first = scene.start(host=host, second_topic=other.topic, settings=SETTINGS)
    journal = first.journal
    before = await other.add(20)
    async with scene.feed.flowing():
        await first.until(lambda: journal.in_flight >= 24 and len(journal.ended) >= 24, 30, "it handles")
        await scene.feed.add(1, seconds=0, then="StopConsume")
        # The rest of the group gets its partitions, so nobody else commits for it.
        await wait_until(lambda: scene.is_committed_as_handled_by(first), 20, lambda: first.story("drained, committed"))
        after = await other.add(20)
        await first.until(lambda: set(before + after) <= set(journal.ended), 30, "the other one goes on")
    first.send(signal.SIGTERM)
    assert await first.exit_code() == (0 if host == "faststream" else -signal.SIGTERM)
    assert not journal.cancelled
    await scene.assert_nothing_lost_or_redelivered(first, others={other.topic})
    assert sum((await committed(scene.bootstrap_servers, scene.group, other.topic)).values()) == len(before + after)


@pytest.mark.parametrize(
    ("host", "error"),
    [
        ("faststream", "StopApplication"),
        ("faststream", "SystemExit"),
        ("asgi", "StopApplication"),
        ("asgi-uvicorn", "StopApplication"),
        ("fastapi-uvicorn", "StopApplication"),
        ("fastapi-uvicorn", "SystemExit"),
        ("fastapi-router-uvicorn", "StopApplication"),
    ],
)
async def test_an_application_that_a_handler_ends_drains_and_commits(scene, host, error):
    first = scene.start(host=host, settings=SETTINGS)
    journal = first.journal
    async with scene.feed.flowing():
        await first.until(lambda: journal.in_flight >= 24 and len(journal.ended) >= 24, 30, "it handles")
        await scene.feed.add(1, seconds=0, then=error)
        if host != "faststream":
            # FastStream leaves a server running, even under AsgiFastStream.run().
            await wait_until(lambda: scene.is_committed_as_handled_by(first), 20, lambda: first.story("committed"))
            first.send(signal.SIGTERM)
        code = await first.exit_code()
    assert code == (0 if host == "faststream" else -signal.SIGTERM), first.story("it ends well")
    await scene.assert_nothing_lost_or_redelivered(first)
    assert "Traceback" not in first.output
