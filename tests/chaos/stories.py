"""Hand-made journals of processes, and the log of what was done to the processes, second by second."""

from array import array
from pathlib import Path

from typing_extensions import override

from chaos.figures import findings_of
from testkit.history import History, Topic
from testkit.journal import DONE, Journal
from testkit.load import Load, Role, Step
from testkit.log import Log
from testkit.oracle import Oracle


NS = 1_000_000_000


class Keyed(Load):
    """Records whose key is the number modulo `keys`."""

    @override
    def draw(self, number):
        return Role(b"%d" % (number % self.keys), 0, (Step(DONE, 0),))


class Story:
    """One partition, records 0 to `records` - 1, whose key is the number modulo `keys`."""

    def __init__(self, records=10, keys=10, **history):
        self.load = Keyed(seed=0, count=records, keys=keys)
        self.numbers = [array("I", range(records))]
        self.failed = 0
        self._about = history
        self._journals = {}
        self._runs = {}
        self._log = []

    def _write(self, worker, at_sec, event, *parts):
        if worker not in self._journals:
            self._journals[worker] = Journal(Path(f"worker-{worker}"))
            self.log(0, "start", worker)
        self._journals[worker].take(" ".join(map(str, (event, int(at_sec * NS), *parts))))

    def assigned(self, worker, at_sec, *partitions):
        self._write(worker, at_sec, "a", *partitions)

    def revoked(self, worker, at_sec):
        self._write(worker, at_sec, "r")

    def says(self, worker, at_sec, text):
        self._write(worker, at_sec, "w", text)

    def left(self, worker, at_sec):
        self._write(worker, at_sec, "x")

    def begin(self, worker, number, at_sec):
        self._write(worker, at_sec, "s", "chaos", 0, number, number, 1)
        self._runs[worker, number] = len(self._journals[worker].runs) - 1

    def end(self, worker, number, at_sec, outcome=DONE):
        self._write(worker, at_sec, "e", self._runs[worker, number], outcome)

    def handle(self, worker, numbers, at_sec, each_sec=0.01):
        """Let a worker handle records one after the other; return when the last one has ended."""
        for number in numbers:
            self.begin(worker, number, at_sec)
            at_sec += each_sec
            self.end(worker, number, at_sec)
        return at_sec

    def log(self, at_sec, *words):
        self._log.append(f"{int(at_sec * NS)} {' '.join(map(str, words))}")

    @property
    def history(self):
        log = Log(sorted(self._log, key=lambda line: int(line.split()[0])))
        topic = Topic.of(self.numbers, self.load.count)
        return History(load=self.load, topic=topic, journals=self._journals, log=log, failed=self.failed, **self._about)

    def verdict(self):
        return Oracle(self.history).verdict()

    def findings(self):
        return findings_of(self.history)
