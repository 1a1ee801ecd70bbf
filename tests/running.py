"""How a run goes: which tests pytest-xdist's workers may run at the same time, and which ones take too long."""

import fcntl
from collections import Counter
from contextlib import contextmanager

from typing_extensions import override
from xdist.scheduler import LoadScopeScheduling


SLOW_SEC = 30
# Their tests share brokers, or another costly fixture, of a module or of the package: a worker runs a whole file.
_WHOLE_FILES = (
    "tests/examples/test_demo.py",
    "tests/faults/",
    "tests/integration/test_commit_held.py",
    "tests/stop/test_deadline.py",
)


class Scheduling(LoadScopeScheduling):
    """Gives the workers of pytest-xdist one test after the other, and the files that share fixtures as a whole.

    Groups marked by `xdist_group` would need a private attribute that pytest 9.2 does not have any more.
    """

    @override
    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """Return what of a run goes to one worker at a time: a test, or the file that it is in."""
    return nodeid.partition("::")[0] if nodeid.startswith(_WHOLE_FILES) else nodeid


@contextmanager
def turn(folder, *, is_alone):
    """Hold the turn of a test: beside the others, or alone, once those that are under way have ended.

    Workers share two locked files in `folder`. A test that waits to be alone keeps the gate, so that none can begin.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "gate.lock").open("w") as gate, (folder / "tests.lock").open("w") as tests:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(tests, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        if not is_alone:
            fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def slow_without_reason(reports):
    """Return the seconds of each test that took more than `SLOW_SEC`, fixtures included, and has no mark `slow`."""
    seconds = Counter()
    for report in reports:
        if "slow" not in report.keywords:
            seconds[report.nodeid] += report.duration
    return {nodeid: taken for nodeid, taken in seconds.most_common() if taken > SLOW_SEC}
