"""A topic with records, a group, and one service after the other in it."""

import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from testkit.brokers import KafkaServer, committed, end_offsets, group_members, wait_until
from testkit.journal import Place
from tests.stop.driver import Feed, Service, bystander, feeding
from tests.stop.plan import Plan


PARTITIONS = 4
NewTopic = Callable[..., Awaitable[str]]


class Scene:
    """One topic and one group."""

    def __init__(self, kafka: KafkaServer, topic: str, tmp_path: Path, bystanders: int) -> None:
        self.kafka = kafka
        self.bootstrap_servers = kafka.bootstrap_servers
        self.topic = topic
        self.group = uuid4().hex
        self.bystanders = bystanders
        self.feed: Feed
        self._new_topic: NewTopic
        self._tmp_path = tmp_path
        self._stack = AsyncExitStack()
        self.services: list[Service] = []

    @classmethod
    async def set_up(
        cls, stack: AsyncExitStack, kafka: KafkaServer, new_topic: NewTopic, tmp_path: Path, *, bystanders: int = 1
    ) -> Self:
        """Create the topic, and let the bystander join the group."""
        where = kafka.bootstrap_servers
        scene = cls(kafka, await new_topic(PARTITIONS, bootstrap=where), tmp_path, bystanders)
        scene._stack, scene._new_topic = stack, new_topic
        scene.feed = await stack.enter_async_context(feeding(where, scene.topic, PARTITIONS))
        for _ in range(bystanders):
            elsewhere = await new_topic(1, bootstrap=where)
            await stack.enter_async_context(bystander(where, scene.group, elsewhere))
        return scene

    def start(self, *, forked: bool = True, **plan: Any) -> Service:
        """Start a service; it is killed at the end of the test."""
        journal = str(self._tmp_path / f"{self.topic}-{len(self.services) + 1}.journal")
        given: dict[str, Any] = {"bootstrap_servers": self.bootstrap_servers, "topic": self.topic, "group": self.group}
        service = Service(Plan(journal=journal, **(given | plan)), forked=forked)
        self.services.append(service)
        self._stack.callback(service.kill)
        return service

    async def second_topic(self) -> Feed:
        """Create one more topic for a service."""
        topic = await self._new_topic(PARTITIONS, bootstrap=self.bootstrap_servers)
        return await self._stack.enter_async_context(feeding(self.bootstrap_servers, topic, PARTITIONS))

    async def members(self) -> int:
        """Return the number of members besides the bystanders; Tansu does not report it."""
        if not self.kafka.full:
            return 0
        return await group_members(self.bootstrap_servers, self.group) - self.bystanders

    async def assert_at_least_once(self, first: Service) -> Service:
        """Run the next process, and check that both have handled everything; return it."""
        successor = await self.run_to_the_end()
        lost = self.feed.places - set(first.journal.read().handled) - set(successor.journal.read().handled)
        assert not lost, first.story("0 lost")
        return successor

    async def is_committed(self) -> bool:
        """Return whether all produced records are committed."""
        ends = {partition: end for partition, end in (await end_offsets(*self._of_topic)).items() if end}
        return await committed(self.bootstrap_servers, self.group, self.topic) == ends

    async def is_committed_as_handled(self) -> bool:
        """Return whether the committed offsets are those of the records that the services have handled."""
        ends: dict[int, int] = {}
        for topic, partition, offset in self._sum_of("handled"):
            if topic == self.topic:
                ends[partition] = max(offset + 1, ends.get(partition, 0))
        return await committed(self.bootstrap_servers, self.group, self.topic) == ends

    def _sum_of(self, name: str) -> Counter[Place]:
        return sum((getattr(each.journal.read(), name) for each in self.services), Counter[Place]())

    @property
    def _of_topic(self) -> tuple[list[str], str]:
        return self.bootstrap_servers, self.topic

    async def run_to_the_end(self) -> Service:
        """Let another process handle the rest, and stop it."""
        last = await self.feed.add(PARTITIONS, seconds=0)
        settings = {"concurrency_limit": 0, "commit_batch_timeout_sec": 0.2}
        successor = self.start(longest_sec=0.1, settings=settings)
        journal = successor.journal
        # Partitions are delivered in order: when the last record has begun, so has each that is delivered again.
        await successor.until(
            lambda: all(place in journal.handled for place in last) and not journal.in_flight, 30, "all is handled"
        )
        successor.send(signal.SIGTERM)
        assert await successor.exit_code() == 0, successor.story("the successor ends well")
        return successor

    async def assert_stopped_cleanly(self, service: Service) -> None:
        """Check what a clean stop leaves: everything committed, the group left, no task, nothing cancelled."""
        assert await self.members() == 0, service.story("it has left the group")
        assert not service.journal.read().cancelled, service.story("nothing is cancelled")
        assert not service.journal.in_flight, service.story("nothing is left undone")
        assert await self.is_committed_as_handled(), service.story("what was handled is committed")
        assert not tasks_left(service), service.story("no task is left")

    async def assert_nothing_lost_or_redelivered(self, others: Collection[str] = ()) -> None:
        """Run one more process, and compare the records that all services have handled with the produced ones.

        Records of `others`, which are topics that this scene does not produce to, may have been handled as well.
        """
        assert await self.members() == 0, self.services[-1].story("it has left the group")
        await self.run_to_the_end()
        stories = "\n".join(each.story("0 lost, 0 redelivered") for each in self.services)
        handled = self._sum_of("handled")
        assert not self._sum_of("cancelled"), stories
        assert not {place: times for place, times in self._sum_of("started").items() if times > 1}, stories
        assert not self.feed.places - set(handled), stories
        assert {place for place in handled if place.topic not in others} <= self.feed.places
        await wait_until(self.is_committed, 5, "everything is committed")
        assert await self.members() == 0


def tasks_left(service: Service) -> list[str]:
    """Return the lines of the process about tasks that were left at its end."""
    return [note for note in service.journal.notes if note.startswith("tasks left:") and note != "tasks left: []"]
