"""Redpanda in a container, where a Docker engine answers."""

import shutil
import subprocess
from typing import TYPE_CHECKING

from typing_extensions import override

from .server import BrokerError, KafkaServer, wait_ready


if TYPE_CHECKING:
    from testcontainers.community.kafka import RedpandaContainer


__all__ = ["IMAGE", "SETTINGS", "Redpanda", "docker_answers"]

# The same as in docker-compose.yml.
IMAGE = "redpandadata/redpanda:v25.3.6"
SETTINGS = {"group_initial_rebalance_delay": "0", "group_min_session_timeout_ms": "1000"}


def docker_answers() -> bool:
    """Whether a Docker engine runs: `docker --version` answers without one."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    try:
        asked = subprocess.run([docker, "info"], capture_output=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


class Redpanda(KafkaServer):
    """One Redpanda broker by testcontainers, on a port of the host that Docker chooses."""

    name = "redpanda"

    def __init__(self) -> None:
        self._container: RedpandaContainer | None = None

    @property
    @override
    def bootstrap_servers(self) -> list[str]:
        if self._container is None:
            raise RuntimeError("Redpanda is not started: Docker has not chosen its port yet")
        return [self._container.get_bootstrap_server()]

    @override
    def start(self) -> None:
        # Imported here, because the import takes most of a second, also for runs on other brokers.
        from testcontainers.community.kafka import RedpandaContainer  # noqa: PLC0415

        try:
            # Assigned before the start, so that stop() also removes a container that did not come up.
            self._container = RedpandaContainer(IMAGE)
            self._container.start(timeout=60)
        except Exception as error:
            raise BrokerError(f"Redpanda did not come up: {error!r}") from error
        for key, value in SETTINGS.items():
            done = self._container.exec(["rpk", "cluster", "config", "set", key, value])
            if done.exit_code != 0:
                raise BrokerError(f"Redpanda refused {key}={value}: {done.output!r}")
        wait_ready(self.bootstrap_servers, brokers=1)

    @override
    def stop(self) -> None:
        if self._container is not None:
            self._container.stop()
            self._container = None
