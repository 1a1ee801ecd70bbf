"""What a test asks of the process that it starts, handed over in one environment variable."""

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
    """What SIGUSR1 makes the process do, by its name in `apps/requests.py`."""
    own_handlers: str = ""
    """How the process installs a handler of its own for SIGTERM: `signal` or `loop`, `before` or `after` ours."""
    longest_sec: float = 1000
    """What a handler takes at most, whatever the record says."""
    second_topic: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of `initialize_concurrent_processing`."""

    def environ(self) -> dict[str, str]:
        """Return what the process needs in its environment."""
        return {_VARIABLE: json.dumps(dataclasses.asdict(self)), "PYTHONUNBUFFERED": "1"}

    @classmethod
    def given(cls) -> Self:
        """Return the plan that this process was started with."""
        return cls(**json.loads(os.environ[_VARIABLE]))
