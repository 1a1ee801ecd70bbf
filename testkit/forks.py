"""Programs that start in milliseconds, as forks of a process that has imported everything.

The forked process runs a module as its main program, in its main thread, and ends as `python -m` does: with the exit
code or the signal that it would have had.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from testkit.journal import Appender, Follower


_ROOT = Path(__file__).parents[1]
_MODULES = ("faststream.kafka", "faststream.asgi", "faststream.kafka.fastapi", "faststream_fastapi", "fastapi")
_OTHERS = ("faststream_concurrent_kafka", "psutil", "uvicorn", "uvloop")
_PATIENCE_SEC = 30.0


class Fork:
    """A process, with those methods of `subprocess.Popen` that tests use."""

    def __init__(self, server: "ForkServer", name: int) -> None:
        self._server = server
        self._name = name

    @property
    def pid(self) -> int:
        """Its process id; the first fork waits for the imports."""
        deadline = time.monotonic() + _PATIENCE_SEC
        while (pid := self._server.pids.get(self._name)) is None:
            if time.monotonic() > deadline:
                raise RuntimeError("the fork server does not answer")
            self._server.read()
            time.sleep(0.005)
        return pid

    @property
    def returncode(self) -> int | None:
        """As that of `Popen`: negative is a signal, None while it runs."""
        self._server.read()
        return self._server.codes.get(self._name)

    def poll(self) -> int | None:
        """Return the same."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send the process a signal, if it still runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process, and wait until it has ended."""
        self.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + _PATIENCE_SEC
        while self.returncode is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"process {self.pid} does not end")
            time.sleep(0.002)


class ForkServer:
    """The process that forks programs for this one; it kills the remaining ones when this process has ended."""

    def __init__(self, answers: Path) -> None:
        self.pids: dict[int, int] = {}
        self.codes: dict[int, int] = {}
        self._forks = 0
        self._answers = Follower(answers)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "testkit.forks", str(answers)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def fork(self, program: Sequence[str], environ: Mapping[str, str], log: Path) -> Fork:
        """Run a module with arguments, its output in a file."""
        self._forks += 1
        asked = {"name": self._forks, "program": list(program), "environ": dict(environ), "log": str(log)}
        if self._process.stdin is None:
            raise RuntimeError("the fork server was started without its pipe")
        self._process.stdin.write(f"{json.dumps(asked)}\n")
        self._process.stdin.flush()
        return Fork(self, self._forks)

    def read(self) -> None:
        """Read the messages of the server about its forks."""
        for line in self._answers.new_lines():
            word, name, number = line.split()
            (self.pids if word == "pid" else self.codes)[int(name)] = int(number)

    def close(self) -> None:
        """End the server and all remaining forks."""
        self._process.communicate()


@functools.cache
def fork_server() -> ForkServer:
    """Return the server of this process; start it at the first call."""
    folder = tempfile.TemporaryDirectory(prefix="forks-")
    server = ForkServer(Path(folder.name) / "answers")
    atexit.register(folder.cleanup)
    atexit.register(server.close)
    return server


class _Server:
    """The forked process, at its end of the pipe."""

    def __init__(self, answers: str) -> None:
        self._answers = Appender(answers)
        self._names: dict[int, int] = {}
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        signal.set_wakeup_fd(self._waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> dict[str, Any]:
        """Fork for each line of stdin; return, in the child, what it has to do. The server ends when its stdin does."""
        left = b""
        while True:
            ready, _, _ = select.select([0, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if 0 in ready:
                text = os.read(0, 65_536)
                if not text:
                    for pid in self._names:
                        os.kill(pid, signal.SIGKILL)
                    os._exit(0)
                *lines, left = (left + text).split(b"\n")
                for line in lines:
                    asked = json.loads(line)
                    if (pid := os.fork()) == 0:
                        self._forget()
                        return asked
                    self._names[pid] = asked["name"]
                    self._answers.write(f"pid {asked['name']} {pid}")

    def _reap(self) -> None:
        for pid in list(self._names):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._answers.write(f"code {self._names.pop(pid)} {os.waitstatus_to_exitcode(status)}")

    def _forget(self) -> None:
        signal.set_wakeup_fd(-1)
        # Default handlers also if the test run was started in the background, where SIGINT and SIGQUIT are ignored.
        for number in (signal.SIGCHLD, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(self._woken)
        os.close(self._waker)


def _main(answers: str) -> None:
    for module in (*_MODULES, *_OTHERS):
        importlib.import_module(module)
    gc.freeze()
    asked = _Server(answers).serve()
    output = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(file, number)
    os.environ.update(asked["environ"])
    sys.argv = asked["program"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main(sys.argv[1])
