"""Imports point down only, and one room touches what others keep private."""

import ast
from pathlib import Path

import pytest

import faststream_concurrent_kafka


SOURCE = Path(faststream_concurrent_kafka.__file__).parent
FLOORS = {
    "errors": 0,
    "checks": 1,
    "retries": 2,
    "settings": 3,
    "lanes": 3,
    "message_consumer": 3,
    "offsets": 3,
    "suspension": 3,
    "topic_groups": 3,
    "adoption": 4,
    "commit_task": 4,
    "consumer_offsets": 5,
    "batch_committer": 6,
    "records": 7,
    "signals": 7,
    "slots": 7,
    "dead_letter": 7,
    "private_parts": 7,
    "time_limits": 8,
    "failures": 8,
    "in_flight": 8,
    "processing": 9,
    "rebalance": 10,
    "attachment": 11,
    "discovery": 12,
    "inline_call": 10,
    "middleware": 13,
    "healthcheck": 14,
    "virtual_time": 14,
    "fake_kafka": 14,
    "testing": 15,
    "__init__": 16,
}
PURE = {"errors", "checks", "lanes", "offsets", "adoption"}
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


@pytest.mark.parametrize("module", MODULES)
def test_no_module_outgrows_a_sitting(module):
    """A file is read in one go."""
    assert len((SOURCE / f"{module}.py").read_text().splitlines()) <= 360
