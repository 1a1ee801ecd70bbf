"""Lines that one process writes and another reads meanwhile, and the end of the one with the other."""

import os
import threading
from pathlib import Path


class Appender:
    """Appends to a file; each line is one write, so that none is torn or lost when the process is killed."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, line: str) -> None:
        """Append a line."""
        os.write(self._file, f"{line}\n".encode())


class Follower:
    """Reads a file to which another process appends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new_lines(self) -> list[str]:
        """Return what was appended since the last time."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        # A read may come in the middle of a write: the rest of that line is for the next time.
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        return text.decode().splitlines()


def die_with_the_starter() -> None:
    """End this process when its parent, which holds a pipe to its stdin, has ended."""
    threading.Thread(target=_wait_for_the_end_of_stdin, daemon=True).start()


def _wait_for_the_end_of_stdin() -> None:
    while os.read(0, 1):
        pass
    os._exit(99)
