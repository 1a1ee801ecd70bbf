"""A consumer whose commits are answered by the test."""

import asyncio
from typing import Any

from aiokafka import TopicPartition


class ScriptedConsumer:
    """Answers commits at once, or as scripted: with an error, or when it is released."""

    def __init__(self, *partitions: TopicPartition) -> None:
        self.assigned = set(partitions)
        self.commits: list[dict[TopicPartition, int]] = []
        self.errors: list[BaseException] = []
        self.hold: asyncio.Event | None = None
        self.in_flight = 0
        self.most_in_flight = 0

    def assignment(self):
        return self.assigned

    async def commit(self, offsets):
        assert offsets
        assert set(offsets) <= self.assigned
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.hold is not None:
                await self.hold.wait()
            if self.errors:
                raise self.errors.pop(0)
            self.commits.append(dict(offsets))
        finally:
            self.in_flight -= 1

    @property
    def committed(self):
        """The last committed offset per partition."""
        return {partition: offset for commit in self.commits for partition, offset in commit.items()}

    def committed_with_metadata(self, partition: TopicPartition) -> Any:
        """The last offset and metadata of a partition."""
        return next(commit[partition] for commit in reversed(self.commits) if partition in commit)
