"""Ledgers made by hand: what processes wrote down and what was done to them, second by second."""

from array import array

from chaos.causes import Topic
from chaos.ledger import Handlings, path_of, read_life
from chaos.log import Log
from chaos.oracle import Oracle


NS = 1_000_000_000


class Story:
    """One partition, records 0 to `records` - 1, whose key is the number modulo `keys`."""

    def __init__(self, folder, records=10, keys=10):
        self.folder = folder
        self.records = records
        self.keys = keys
        self.numbers = [array("I", range(records))]
        self.failed = 0
        self._lines = {}
        self._log = []

    def _write(self, worker, at_sec, event, what="-", text=""):
        if worker not in self._lines:
            self._lines[worker] = []
            self.log(0, "start", worker)
        self._lines[worker].append(f"{event} {what} {int(at_sec * NS)}{text and ' ' + text}")

    def assigned(self, worker, at_sec, partitions="0"):
        self._write(worker, at_sec, "a", partitions)

    def revoked(self, worker, at_sec):
        self._write(worker, at_sec, "r")

    def says(self, worker, at_sec, text):
        self._write(worker, at_sec, "w", "-", text)

    def left(self, worker, at_sec):
        self._write(worker, at_sec, "x")

    def begin(self, worker, number, at_sec):
        self._write(worker, at_sec, "s", number)

    def end(self, worker, number, at_sec):
        self._write(worker, at_sec, "e", number)

    def handle(self, worker, numbers, at_sec, each_sec=0.01):
        """One after the other; return when the last one has ended."""
        for number in numbers:
            self.begin(worker, number, at_sec)
            at_sec += each_sec
            self.end(worker, number, at_sec)
        return at_sec

    def log(self, at_sec, *words):
        self._log.append(f"{int(at_sec * NS)} {' '.join(map(str, words))}")

    def findings(self):
        handlings, lives = Handlings(), {}
        for worker, lines in self._lines.items():
            path_of(self.folder, worker).write_text("".join(f"{line}\n" for line in lines))
            lives[worker] = read_life(path_of(self.folder, worker), worker, handlings)
        log = Log(sorted(self._log, key=lambda line: int(line.split()[0])))
        topic = Topic.of(self.numbers, self.records)
        return Oracle(topic, lambda number: number % self.keys, handlings, lives, log).findings(failed=self.failed)
