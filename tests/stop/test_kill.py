"""kill -9: no record is lost, and every committed record had finished."""

import pytest

from testkit.brokers import committed
from tests.stop.scene import Scene


@pytest.mark.parametrize("host", ["faststream", "plain"])
async def test_a_killed_process_loses_nothing_and_had_committed_finished_records_only(scene: Scene, host: str):
    first = scene.start(host=host, settings={"concurrency_limit": 48, "commit_batch_timeout_sec": 0.2})
    journal = first.journal
    async with scene.feed.flowing():
        await first.until(lambda: journal.in_flight >= 24 and len(journal.handled) >= 100, 30, "it handles")
        first.kill()
    offsets = await committed(scene.bootstrap_servers, scene.group, scene.topic)
    ended = set(journal.read().handled)
    below = {place for place in scene.feed.places if place.offset < offsets.get(place.partition, 0)}
    assert below, first.story("it has committed")
    assert not below - ended, first.story("nothing is committed past unfinished work")
    successor = await scene.assert_at_least_once(first)
    again = ended & set(successor.journal.read().handled)
    assert not again & below, successor.story("what was committed is not delivered again")
