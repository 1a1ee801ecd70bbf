"""A hand-made history for the oracle."""

import pytest

from tests.chaos.stories import Story


@pytest.fixture
def story():
    """Worker 1 owns partition 0 from second 1 on; ten records, each with its own key."""
    story = Story()
    story.assigned(1, 1, 0)
    return story
