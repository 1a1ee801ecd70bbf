"""A seed's world does not depend on the process that plays it."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("seed", "twist"), [(17, []), (144, []), (14, ["--twist", "seeks"]), (30, ["--twist", "bursts"])]
)
def test_replay_in_other_processes(seed, twist):
    """Two interpreters with different string hashes play a seed in the same way."""
    stories = [
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", str(seed), *twist],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert f"seed {seed}" in stories[0]
    assert "no promise broken" in stories[0]
    assert [_without_addresses(story) for story in stories[:1]] == [_without_addresses(story) for story in stories[1:]]


def _without_addresses(story):
    return [line.partition(" at 0x")[0] for line in story.splitlines()]
