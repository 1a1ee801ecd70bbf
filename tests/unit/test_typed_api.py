"""A type checker finds wrong settings before the program runs."""

import re
import subprocess
import sys

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
    "async def run(context: ContextRepo) -> None: await initialize_concurrent_processing(context)",
    'async def run_in_order(it: ContextRepo) -> None: await initialize_concurrent_processing(it, ordering="partition")',
    "async def unbound(c: ContextRepo) -> None: await initialize_concurrent_processing(c, max_uncommitted_tasks=None)",
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
    "async def start(context: ContextRepo) -> None: await initialize_concurrent_processing(context, ordering=True)",
    "async def begin(context: ContextRepo) -> None: await initialize_concurrent_processing(context, limit=3)",
    "async def go(it: ContextRepo) -> None: await initialize_concurrent_processing(it, commit_batch_size=None)",
]


def check_lines(folder, *checker):
    """Run a type checker over all lines: it has to name each wrong one, and no other."""
    source = folder / "settings.py"
    source.write_text(IMPORTS + "\n".join(RIGHT + WRONG) + "\n")
    command = [sys.executable, "-m", *checker, str(source)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    named = {int(number) for number in re.findall(rf"{source.name}:(\d+):.*error", answer.stdout)}
    first = IMPORTS.count("\n") + 1 + len(RIGHT)
    assert named == set(range(first, first + len(WRONG))), answer.stdout + answer.stderr


def test_a_type_checker_tells_right_from_wrong(tmp_path):
    """With ty; `tests/test_type_checkers.py` has the others, which take longer."""
    check_lines(tmp_path, "ty", "check", "--python", sys.prefix, "--output-format", "concise")
