"""What a type checker says of the settings: mistakes are seen before the program runs."""

import subprocess
import sys

import pytest

from tests.examples.programs import ROOT


IMPORTS = """
from faststream import ContextRepo
from faststream.kafka import KafkaBroker, KafkaRouter
from faststream_concurrent_kafka import (
    Attempt, DeadLetter, FailurePolicy, KafkaConcurrentProcessingMiddleware, initialize_concurrent_processing,
)
"""
RIGHT = [
    "KafkaRouter(middlewares=[KafkaConcurrentProcessingMiddleware.configured(concurrency_limit=3)])",
    'KafkaRouter(middlewares=[KafkaConcurrentProcessingMiddleware.configured(ordering="key")])',
    "KafkaBroker(middlewares=[KafkaConcurrentProcessingMiddleware.configured(handler_timeout_sec=3)])",
    'FailurePolicy(max_attempts=3, retry_on=(OSError, ValueError), then=DeadLetter("dead"))',
    'FailurePolicy(retry_on=lambda error, attempt: attempt < 3, then="halt")',
    'DeadLetter(lambda record: record.topic + ".dead")',
    "async def handle(attempt: Attempt) -> int: return attempt + 1",
    'async def start(context: ContextRepo): await initialize_concurrent_processing(context, ordering="partition")',
]
WRONG = [
    'KafkaConcurrentProcessingMiddleware.configured(ordering="keys")',
    'KafkaConcurrentProcessingMiddleware.configured(on_failure="retry")',
    "KafkaConcurrentProcessingMiddleware.configured(concurrency_limit=0.5)",
    "KafkaConcurrentProcessingMiddleware.configured(commit_batch_size=3)",
    'FailurePolicy(max_attempts="3")',
    "FailurePolicy(3)",
    'FailurePolicy(then="dead")',
    "FailurePolicy(retry_on=ValueError())",
    "FailurePolicy(never_retry=lambda error, attempt: True)",
    "DeadLetter(3)",
    "async def start(context: ContextRepo): await initialize_concurrent_processing(context, ordering=True)",
]


@pytest.mark.parametrize(("lines", "is_right"), [(RIGHT, True), (WRONG, False)], ids=["right", "wrong"])
def test_a_type_checker_tells_right_from_wrong(tmp_path, lines, is_right):
    """Each right line passes, each wrong one is named."""
    source = tmp_path / "settings.py"
    source.write_text(IMPORTS + "\n".join(lines) + "\n")
    command = [sys.executable, "-m", "ty", "check", "--python", sys.prefix, "--output-format", "concise", str(source)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    first = IMPORTS.count("\n") + 1
    named = {int(line.split(":")[1]) for line in answer.stdout.splitlines() if line.startswith(str(source))}
    expected = set() if is_right else set(range(first, first + len(lines)))
    assert named == expected, answer.stdout + answer.stderr
