"""What a process under test has to do; the test passes it in one environment variable."""

import dataclasses
import json
import os
from typing import Any, Self


_VARIABLE = "STOP_PLAN"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How one process is built and stopped."""

    bootstrap_servers: list[str]
    topic: str
    group: str
    journal: str
    host: str = "faststream"
    where: str = "lifespan"
    """Where concurrent processing is initialised and stopped: `lifespan`, `hooks`, or `nowhere` (not used at all)."""
    loop: str = "asyncio"
    on_request: str = "broker.stop"
    """What the process does on SIGUSR1: a name in `apps/requests.py`."""
    own_handlers: str = ""
    """How the program installs its own handler for SIGTERM: `signal` or `loop`, `before` or `after` the library's."""
    longest_sec: float = 1000
    """The longest time that a handler takes; limits what the record says."""
    second_topic: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of `initialize_concurrent_processing`."""

    def environ(self) -> dict[str, str]:
        """Return the environment variable for the process."""
        return {_VARIABLE: json.dumps(dataclasses.asdict(self)), "PYTHONUNBUFFERED": "1"}

    @classmethod
    def given(cls) -> Self:
        """Return the plan that this process was started with."""
        return cls(**json.loads(os.environ[_VARIABLE]))
