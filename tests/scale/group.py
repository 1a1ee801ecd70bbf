"""A group on a topic that has a script: members come and go, and in the end the oracle is asked."""

import time
from uuid import uuid4

from testkit.brokers import committed, wait_until
from tests.scale.journal import Life
from tests.scale.member import Member, dead_letters
from tests.scale.oracle import Oracle, first_of_each
from tests.scale.script import Script
from tests.scale.worker import Plan


DEAD_PARTITIONS = 4


class Group:
    """The members of a group, one after the other and side by side, and how far they have come."""

    def __init__(self, script: Script, *, bootstrap_servers, topics, folder, settings):
        self._script = script
        self._bootstrap_servers = bootstrap_servers
        self.topic, self._dead_topic = topics
        self._folder = folder
        self._settings = settings
        self._name = uuid4().hex
        self._progress: dict[Life, int] = {}
        self.members: list[Member] = []
        self.finished: set[int] = set()

    def join(self) -> Member:
        """Let one more member join."""
        journal = self._folder / f"member-{len(self.members) + 1}.journal"
        plan = Plan(
            bootstrap_servers=self._bootstrap_servers,
            topic=self.topic,
            dead_topic=self._dead_topic,
            group=self._name,
            journal=str(journal),
            script={name: getattr(self._script, name) for name in ("seed", "count", "keys", "partitions", "ordering")},
            settings=self._settings,
        )
        member = Member(plan)
        self.members.append(member)
        return member

    def end(self) -> None:
        """End all that is left."""
        for member in self.members:
            member.kill()

    async def until(self, share: float, *running: Member) -> None:
        """Wait until such a share of the records that handlers see has come to its end."""
        count = sum(bool(self._script.steps(number)) for number in range(self._script.count))

        def reached() -> bool:
            for member in self.members:
                self._take_in(member)
            for member in running:
                assert not member.has_ended, member.story()
            return len(self.finished) >= int(share * count)

        await wait_until(
            reached,
            120,
            lambda: f"{share:.0%} of {count}, but {len(self.finished)}; {' '.join(each.story() for each in running)}",
        )

    def _take_in(self, member: Member) -> None:
        life = member.life.read()
        for run in life.ended[self._progress.get(life, 0) :]:
            if self._script.is_final(run.number, run.attempt, run.outcome):
                self.finished.add(run.number)
        self._progress[life] = len(life.ended)

    async def has_begun(self, member: Member) -> None:
        """Wait until a member has had its first records."""

        def begun() -> bool:
            assert not member.has_ended, member.story()
            return len(member.life.read().ended) > 100

        await wait_until(begun, 30, member.story)

    async def kill(self, member: Member) -> None:
        """Kill a member, and note what it has committed."""
        member.kill()
        member.life.killed_ns = time.monotonic_ns()
        member.life.committed = await self.committed()

    async def committed(self) -> dict[int, int]:
        """Return what is committed."""
        return await committed(self._bootstrap_servers, self._name, self.topic)

    async def until_committed(self) -> None:
        """Wait until everything is."""
        ends: dict[int, int] = {}
        for number in range(self._script.count):
            partition = self._script.partition(number)
            ends[partition] = ends.get(partition, 0) + 1

        async def done() -> bool:
            return await self.committed() == ends

        await wait_until(done, 30, lambda: f"everything is committed: {self.members[-1].story()}")

    async def assert_all_is_as_scripted(self) -> Oracle:
        """Ask the oracle."""
        letters = await dead_letters(self._bootstrap_servers, self._dead_topic, DEAD_PARTITIONS)
        tells = self._settings.get("commit_metadata", True)
        oracle = Oracle(self._script, [each.life for each in self.members], letters, tells=tells)
        found = first_of_each(oracle.violations())
        assert not found, f"SCALE_SEED={self._script.seed}\n{found}"
        return oracle
