"""Which tests the workers of pytest-xdist may run at the same time, in which order, and which take too long."""

import enum
import fcntl
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Listener

from typing_extensions import override
from xdist.scheduler import LoadScopeScheduling

from testkit.brokers import BrokerError, External


SLOW_SEC = 30
# Tests that share something: brokers of a module or a package, or the topics and groups that a program names.
_WHOLE_FILES = (
    "tests/examples/",
    "tests/faults/",
    "tests/integration/test_commit_held.py",
    "tests/readme/",
    "tests/stop/test_deadline.py",
)
_SIMULATION = "tests/simulation/"
_FIRST = 8


class Scheduling(LoadScopeScheduling):
    """Gives the workers of pytest-xdist one test after the other, and the files that share fixtures as a whole.

    Groups marked by `xdist_group` would need a private attribute that pytest 9.2 does not have any more.
    """

    @override
    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """Return the unit that goes to one worker: a test, or its whole file."""
    return nodeid.partition("::")[0] if nodeid.startswith(_WHOLE_FILES) else nodeid


def in_order(items):
    """Return tests in the order in which workers take them: long ones first, those that run alone last.

    A long test that begins last would keep one worker busy after the others have ended; one that runs alone waits at
    the end for few others. The simulation only computes: some of it fills the time in which the broker starts, and the
    rest is spread over the tests that wait for a broker.
    """
    marked = {
        name: {scope_of(item.nodeid) for item in items if item.get_closest_marker(name)} for name in ("alone", "slow")
    }
    computing = [item.nodeid for item in items if item.nodeid.startswith(_SIMULATION)]
    waiting = [item.nodeid for item in items if item.get_closest_marker("integration")]
    first = {nodeid for nodeid in computing[:_FIRST] if nodeid not in marked["slow"]}
    places = {nodeid: place / len(group) for group in (computing, waiting) for place, nodeid in enumerate(group)}

    def rank(item):
        scope = scope_of(item.nodeid)
        group = 0 if scope in first else 1 if scope in marked["slow"] else 2 if scope != item.nodeid else 3
        return scope in marked["alone"], group, places.get(item.nodeid, 1.0)

    return sorted(items, key=rank)


@contextmanager
def turn(folder, *, is_alone):
    """Let a test begin: beside the others, or alone, after those that run have ended.

    Workers share two locked files in `folder`. A test that waits to be alone keeps the gate, so that none can begin.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "gate.lock").open("w") as gate, (folder / "tests.lock").open("w") as tests:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(tests, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        if not is_alone:
            fcntl.flock(gate, fcntl.LOCK_UN)
        yield


class Ask(enum.Enum):
    """What a worker asks of the process that has started it."""

    START = enum.auto()
    """To start the broker of the run, without an answer."""
    WHERE = enum.auto()
    """Where the broker is, once it runs."""
    STOP = enum.auto()


class SharedKafka:
    """Starts the broker of a run when the first worker asks for it, and ends it with the run.

    It runs in the process that has started the workers, which ask for it by a socket.
    """

    def __init__(self, server):
        self._server = server
        self._listener = Listener()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self):
        """The address of the socket."""
        return self._listener.address

    def _serve(self):
        answer = None
        try:
            while True:
                with self._listener.accept() as asking:
                    asked = asking.recv()
                    if asked is Ask.STOP:
                        break
                    answer = answer or self._start()
                    if asked is Ask.WHERE:
                        asking.send(answer)
        finally:
            self._listener.close()
            self._server.stop()

    def _start(self):
        try:
            self._server.start()
        except BrokerError as error:
            return str(error)
        return self._server.bootstrap_servers, self._server.full

    def stop(self):
        """End it."""
        with suppress(OSError):  # it has ended by itself
            _ask(self.address, Ask.STOP)
        self._thread.join()


def start_shared_kafka(address):
    """Have the broker of the run start, in a worker, and do not wait for it."""
    _ask(address, Ask.START)


def shared_kafka(address):
    """Return the broker of the run, in a worker; raise BrokerError if it did not start."""
    answer = _ask(address, Ask.WHERE)
    if isinstance(answer, str):
        raise BrokerError(answer)
    servers, is_full = answer
    return External(servers, full=is_full)


def _ask(address, what):
    with Client(address) as connection:
        connection.send(what)
        return connection.recv() if what is Ask.WHERE else None


def slow_without_reason(reports):
    """Return the seconds of each test that took more than `SLOW_SEC`, fixtures included, and has no mark `slow`."""
    seconds = Counter()
    for report in reports:
        if "slow" not in report.keywords:
            seconds[report.nodeid] += report.duration
    return {nodeid: taken for nodeid, taken in seconds.most_common() if taken > SLOW_SEC}
