"""A process in a consumer group, which writes a journal."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from testkit.brokers import wait_until
from testkit.forks import Fork, fork_server
from testkit.journal import Journal


_ROOT = Path(__file__).parents[1]


class Member:
    """A process from its start to its end, with its journal in `<name>.journal` and its output in `<name>.log`."""

    def __init__(
        self, program: Sequence[str], journal: Path, environ: Mapping[str, str], *, forked: bool = True
    ) -> None:
        self.journal = Journal(journal)
        self._log = journal.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | Fork
        if forked:
            self.process = fork_server().fork(program, environ, self._log)
            return
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore::DeprecationWarning", "-m", *program],
                cwd=_ROOT,
                env=os.environ | environ,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def returncode(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    async def exit_code(self, timeout_sec: float = 30) -> int:
        """Wait for its end; return its exit code."""
        await wait_until(lambda: self.returncode is not None, timeout_sec, lambda: self.story("it ends"))
        self.journal.read()
        code = self.returncode
        if code is None:
            raise RuntimeError("it has ended and has not")
        return code

    async def stop(self, timeout_sec: float = 40) -> None:
        """Send SIGTERM, as an orchestrator does, and check that it ends with exit code 0."""
        self.send(signal.SIGTERM)
        if await self.exit_code(timeout_sec):
            raise AssertionError(self.story("it ends well"))

    async def until(self, predicate: Callable[[], object], timeout_sec: float, what: str) -> Self:
        """Wait until its journal fulfils a condition."""

        def holds() -> bool:
            self.journal.read()
            if predicate():
                return True
            if self.returncode is not None:
                raise AssertionError(self.story(what))
            return False

        await wait_until(holds, timeout_sec, lambda: self.story(what))
        return self

    @property
    def output(self) -> str:
        """Its output."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def story(self, wanted: str) -> str:
        """Describe its state, for a failed test."""
        journal = self.journal.read()
        return (
            f"{wanted}: {journal.name}; exit code {self.returncode}; {len(journal.runs)} started, "
            f"{journal.in_flight} in flight, {journal.cancelled.total()} cancelled; notes {journal.notes}; "
            f"output:\n{self.output[-6000:]}"
        )

    def kill(self) -> None:
        """Kill the process, if it still runs."""
        self.process.kill()
        if isinstance(self.process, subprocess.Popen):
            self.process.communicate()
