"""Figures of a run for the tables, in addition to the oracle's findings."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise

from testkit.history import NS, History, Topic
from testkit.journal import Journal
from testkit.log import Log
from testkit.oracle import Oracle, Verdict


# The resolution of measured pauses.
_STEP_NS = NS // 100


@dataclasses.dataclass(slots=True)
class Findings:
    """The result of a run."""

    verdict: Verdict
    records: int
    seconds: float
    handlings: int
    workers: int
    killed: int
    frozen: int
    """The largest memory of a worker process, in MB."""
    faults: Counter[str]
    troubles: int
    """The number of broker faults."""
    produced_twice: int
    stall_sec: float
    pauses_sec: dict[str, list[float]]
    """By kind of fault, for each fault: the longest pause of a partition that it hit, in seconds."""
    memory_mb: float
    warnings: Counter[str]

    def broken(self) -> list[str]:
        """Name the promises that did not hold."""
        return self.verdict.broken()


def findings_of(history: History) -> Findings:
    """Evaluate the evidence of a run that is over."""
    log, topic = history.log, history.topic
    pauses = Pauses(topic, history.journals)
    return Findings(
        verdict=Oracle(history).verdict(),
        records=sum(partition >= 0 for partition in topic.partition_of),
        seconds=pauses.seconds,
        handlings=sum(len(each.runs) for each in history.journals.values()),
        workers=len(log.started),
        killed=sum(fate.kill_ns is not None for fate in log.fates.values()),
        frozen=sum(bool(fate.frozen) for fate in log.fates.values()),
        faults=Counter(fault.kind for fault in log.faults.values()),
        troubles=len(log.troubles),
        produced_twice=topic.twice,
        stall_sec=pauses.longest_sec(),
        pauses_sec=_pauses_by_kind(pauses, history.journals, log, frozenset(range(len(topic.partitions)))),
        memory_mb=max((fate.memory_mb for fate in log.fates.values()), default=0.0),
        warnings=Counter(_kind_of(said.text) for each in history.journals.values() for said in each.said),
    )


def _pauses_by_kind(
    pauses: "Pauses", journals: Mapping[int, Journal], log: Log, everything: frozenset[int]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for fault in log.faults.values():
        hit = everything
        if fault.hits:
            # The partitions of the processes that it hit; a deployment hits them one after the other.
            hit = frozenset[int]().union(*(_partitions_at(fault.begin_ns, journals.get(each)) for each in fault.hits))
        found[fault.kind].append(
            max((pauses.around(partition, fault.begin_ns, fault.end_ns) for partition in hit), default=0.0)
        )
    return dict(found)


def _partitions_at(at_ns: int, journal: Journal | None) -> frozenset[int]:
    epochs = journal.epochs if journal is not None else []
    return next((each.partitions for each in reversed(epochs) if each.assigned_ns <= at_ns), frozenset())


class Pauses:
    """The pauses in which no record was begun or finished, in steps of 10 ms: in all, and per partition."""

    def __init__(self, topic: Topic, journals: Mapping[int, Journal]) -> None:
        runs = [run for journal in journals.values() for run in journal.runs]
        self._begin_ns = min((run.start_ns for run in runs), default=0)
        last_ns = max((run.end_ns or run.start_ns for run in runs), default=0)
        steps = (last_ns - self._begin_ns) // _STEP_NS + 1
        self.seconds = steps * _STEP_NS / NS
        self._all = bytearray(steps)
        self._begun = [bytearray(steps) for _ in topic.partitions]
        for run in runs:
            step = (run.start_ns - self._begin_ns) // _STEP_NS
            self._all[step] = 1
            if topic.partition_of[run.number] >= 0:
                self._begun[topic.partition_of[run.number]][step] = 1
            if run.end_ns is not None:
                self._all[(run.end_ns - self._begin_ns) // _STEP_NS] = 1

    def longest_sec(self) -> float:
        """Return the longest time in which no record was begun or finished in the whole group."""
        active = [step for step, is_active in enumerate(self._all) if is_active]
        return max((later - earlier for earlier, later in pairwise(active)), default=0) * _STEP_NS / NS

    def around(self, partition: int, begin_ns: int, end_ns: int) -> float:
        """Return the longest pause of a partition that overlaps the given time."""
        begun = self._begun[partition]
        step = begun.rfind(1, 0, max(0, (begin_ns - self._begin_ns) // _STEP_NS) + 1)
        last = (end_ns - self._begin_ns) // _STEP_NS
        longest = 0
        while 0 <= step <= last and (following := begun.find(1, step + 1)) >= 0:
            longest = max(longest, following - step)
            step = following
        return longest * _STEP_NS / NS


def _kind_of(text: str) -> str:
    """Return the constant beginning of a warning: its words up to the first variable one."""
    words = text.split()
    varying = next((place for place, word in enumerate(words) if any(map(str.isdigit, word)) or "[" in word), 12)
    return " ".join(words[: min(varying, 12)])
