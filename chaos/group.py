"""The worker processes, and the group that starts missing ones as an orchestrator does."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from testkit.brokers.process import Process
from testkit.log import LogWriter


# An orchestrator allows 30 s; more here for a busy machine. A stop takes at most a little more than 15 s.
_STOP_SEC = 40.0
_LOOK_SEC = 0.1
_LOOKS_PER_WEIGHING = 10
_BYTES_PER_MB = 1e6


def path_of(folder: Path, index: int) -> Path:
    """Return the path of a process's journal."""
    return folder / f"worker-{index:04d}.journal"


class Worker:
    """One process, from its start to its end."""

    def __init__(self, index: int, process: Process, journal: Path) -> None:
        self.index = index
        self.process = process
        self._journal = journal
        self.is_told = False
        """Whether the process was stopped or killed."""
        self.is_frozen = False
        self.makes_room = False
        """Whether its successor starts before it has ended."""
        self.memory_mb = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether it runs; True for a frozen process."""
        return self.process.alive

    @property
    def has_begun(self) -> bool:
        """Whether it has had an assignment."""
        return self._journal.exists() and self._journal.stat().st_size > 0

    def weigh(self) -> None:
        """Note the memory of the process."""
        with contextlib.suppress(psutil.Error):
            rss = psutil.Process(self.process.pid).memory_info().rss
            self.memory_mb = max(self.memory_mb, rss / _BYTES_PER_MB)


class Group:
    """Keeps the wanted number of workers running."""

    def __init__(self, folder: Path, log: LogWriter, task: Callable[[Path], str]) -> None:
        self._folder = folder
        self._log = log
        self._task = task
        self.wanted = 0
        self.living: list[Worker] = []
        self._started = 0

    @property
    def free(self) -> list[Worker]:
        """The workers that were not stopped, killed or frozen."""
        return [each for each in self.living if each.is_alive and not each.is_told and not each.is_frozen]

    async def keep(self) -> None:
        """Start missing workers, for ever."""
        looks = 0
        while True:
            self._look()
            looks += 1
            if looks % _LOOKS_PER_WEIGHING == 0:
                for each in self.living:
                    each.weigh()
            await asyncio.sleep(_LOOK_SEC)

    def _look(self) -> None:
        for each in [each for each in self.living if not each.is_alive]:
            self.living.remove(each)
            if not each.is_told:
                self._log.write("died", each.index)
            self._log.write("memory", each.index, f"{each.memory_mb:.1f}")
        for _ in range(self.wanted - sum(not each.makes_room for each in self.living)):
            self._start()

    def _start(self) -> None:
        self._started += 1
        index = self._started
        journal = path_of(self._folder, index)
        process = Process(
            [sys.executable, "-m", "testkit.worker", self._task(journal)], self._folder / f"worker-{index:04d}.log"
        )
        self._log.write("start", index)
        process.start()
        self.living.append(Worker(index, process, journal))

    def resize(self, wanted: int, fault: int, *, oldest_first: bool) -> None:
        """Change the number of workers; stops the surplus."""
        self.wanted = wanted
        staying = [each for each in self.living if not each.is_told]
        free = self.free if oldest_first else self.free[::-1]
        for each in free[: max(0, len(staying) - wanted)]:
            self.stop(each, fault)

    def stop(self, worker: Worker, fault: int | str, *, makes_room: bool = False) -> None:
        """Send SIGTERM, as an orchestrator does."""
        self._log.write("term", worker.index, fault)
        worker.is_told = True
        worker.makes_room = makes_room
        if worker.is_alive:
            os.kill(worker.process.pid, signal.SIGTERM)

    def kill(self, worker: Worker, fault: int) -> None:
        """Kill it."""
        self._log.write("kill", worker.index, fault)
        worker.is_told = True
        worker.process.kill()

    def freeze(self, worker: Worker, fault: int) -> None:
        """Freeze the process (SIGSTOP)."""
        self._log.write("freeze", worker.index, fault)
        worker.is_frozen = True
        worker.process.pause()

    def thaw(self, worker: Worker, fault: int) -> None:
        """Let the process go on (SIGCONT), if it still exists."""
        if worker.is_alive:
            self._log.write("thaw", worker.index, fault)
            worker.process.resume()
        worker.is_frozen = False

    async def gone(self, worker: Worker) -> None:
        """Wait until a worker that was sent SIGTERM has ended; kill it if it takes too long."""
        if not await until(lambda: not worker.is_alive, _STOP_SEC):
            self._log.write("stubborn", worker.index)
            self._log.write("kill", worker.index, "-")
            worker.process.kill()

    async def whole(self, timeout_sec: float = 20.0) -> bool:
        """Wait until the wanted number of workers have an assignment; return False after a time limit."""
        return await until(
            lambda: len(self.living) >= self.wanted and all(each.has_begun for each in self.living), timeout_sec
        )

    def end(self) -> None:
        """Kill all remaining workers."""
        self.wanted = 0
        for each in self.living:
            each.process.kill()


async def until(predicate: Callable[[], bool], timeout_sec: float) -> bool:
    """Wait until a condition holds; return False after a time limit."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_sec):
            while not predicate():  # noqa: ASYNC110 - of other processes
                await asyncio.sleep(_LOOK_SEC / 2)
    return predicate()
