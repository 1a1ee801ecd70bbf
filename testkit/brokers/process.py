"""One process of a broker, which is killed also when this process is killed."""

import atexit
import functools
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil


__all__ = ["Process", "free_ports"]

# Below every platform's ephemeral range (Linux begins at 32768). While a broker is down its clients go on connecting:
# an outgoing connection could get the broker's port as its own ephemeral port, and the restarted broker could not bind
# it.
_PORTS = range(15_000, 32_000)

# `finally` and atexit do not run when the test run is killed, so a small process waits for the end of its stdin and
# then kills the processes that are left. It reads one pid a line, negative when that process has ended.
_GUARD = f"""
import os, sys
left = set()
for line in sys.stdin:
    pid = int(line)
    left.add(pid) if pid > 0 else left.discard(-pid)
for pid in left:
    try:
        os.kill(pid, {int(getattr(signal, "SIGKILL", signal.SIGTERM))})
    except OSError:
        pass
"""


class Process:
    """A command that can be started, paused, killed and started again.

    It is kept apart from the terminal, so that Ctrl-C reaches the tests and not the broker under them.
    Its output is appended to the file `log`.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command = list(command)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the command; it must not be running."""
        if self.alive:
            raise RuntimeError(f"{self._command[0]} is running already, pid {self.pid}")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        _tell_guard(self._process.pid)

    @property
    def alive(self) -> bool:
        """Whether the process runs; True for a paused one."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The pid of the running process."""
        if self._process is None:
            raise RuntimeError(f"{self._command[0]} is not running")
        return self._process.pid

    def kill(self) -> None:
        """Kill the process (SIGKILL), also while it is paused; does nothing if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            _tell_guard(-self._process.pid)
            self._process = None

    def terminate(self, timeout_sec: float = 60) -> None:
        """Ask it to end (SIGTERM) and wait for that; kill it after the timeout."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_sec)
            self.kill()

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): its sockets stay open and silent, as behind a network partition."""
        psutil.Process(self.pid).suspend()

    def resume(self) -> None:
        """Let the process run again (SIGCONT)."""
        psutil.Process(self.pid).resume()

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of its output."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def free_ports(count: int) -> list[int]:
    """Return different loopback ports on which nothing listens."""
    held: list[socket.socket] = []
    try:
        for port in random.sample(_PORTS, len(_PORTS)):
            candidate = socket.socket()
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                candidate.close()
                continue
            held.append(candidate)
            if len(held) == count:
                return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()
    raise RuntimeError(f"no {count} free ports in {_PORTS}")


def _tell_guard(pid: int) -> None:
    pipe = _guard()
    pipe.write(f"{pid}\n")
    pipe.flush()


@functools.cache
def _guard() -> IO[str]:
    guard = subprocess.Popen(
        [sys.executable, "-S", "-c", _GUARD], stdin=subprocess.PIPE, text=True, start_new_session=True
    )
    if guard.stdin is None:
        raise RuntimeError("the guard was started without its pipe")
    atexit.register(_dismiss, guard, guard.stdin)
    return guard.stdin


def _dismiss(guard: subprocess.Popen[str], pipe: IO[str]) -> None:
    pipe.close()
    guard.wait()
