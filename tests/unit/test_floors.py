"""Imports point down only, and one room touches what others keep private."""

import ast
from pathlib import Path

import pytest

import faststream_concurrent_kafka


SOURCE = Path(faststream_concurrent_kafka.__file__).parent
FLOORS = {
    "errors": 0,
    "background": 1,
    "checks": 1,
    "retries": 2,
    "settings": 3,
    "lanes": 3,
    "message_consumer": 3,
    "offsets": 3,
    "suspension": 3,
    "topic_groups": 3,
    "adoption": 4,
    "commit_clock": 3,
    "commit_task": 4,
    "offset_map": 3,
    "refusals": 3,
    "stalls": 3,
    "consumer_offsets": 5,
    "commit_request": 6,
    "batch_committer": 7,
    "records": 8,
    "signals": 8,
    "slots": 3,
    "dead_letter": 8,
    "private_parts": 4,
    "pauses": 3,
    "positions": 8,
    "window": 8,
    "subscriber_health": 8,
    "time_limits": 9,
    "threads": 9,
    "turns": 3,
    "loop_lag": 4,
    "failures": 9,
    "in_flight": 9,
    "polling": 8,
    "shared_stop": 9,
    "processing": 10,
    "rebalance": 11,
    "attachment": 12,
    "discovery": 13,
    "inline_call": 11,
    "middleware": 14,
    "healthcheck": 15,
    "virtual_time": 15,
    "fake_kafka": 15,
    "testing": 16,
    "__init__": 17,
}
PURE = {"errors", "checks", "commit_clock", "lanes", "offsets", "offset_map", "refusals", "stalls", "adoption"}
MODULES = sorted(path.stem for path in SOURCE.glob("*.py"))


def imported_by(module):
    for node in ast.walk(ast.parse((SOURCE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (
                [node.module] if node.module != SOURCE.name else [f"{SOURCE.name}.{a.name}" for a in node.names]
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_module_has_a_floor():
    """A new module has to be given its place."""
    assert set(MODULES) == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    """A module imports only from floors below its own."""
    ours = [name.split(".")[1] for name in imported_by(module) if name.startswith(f"{SOURCE.name}.")]
    assert all(FLOORS[name] < FLOORS[module] for name in ours), ours


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_know_no_asyncio_clock_log_or_kafka(module):
    """What decides about offsets can be tested by itself."""
    foreign = {name.split(".")[0] for name in imported_by(module)}
    assert not foreign & {"asyncio", "time", "logging", "aiokafka", "faststream"}


@pytest.mark.parametrize("module", MODULES)
def test_private_packages_of_faststream_stay_out(module):
    """No module imports from FastStream's private packages."""
    assert not [name for name in imported_by(module) if "._" in name]
