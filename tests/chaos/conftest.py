"""Stories for the oracle."""

import pytest

from tests.chaos.stories import Story


@pytest.fixture
def story():
    """Worker 1 has partition 0 from second 1 on; ten records, each of a key of its own."""
    story = Story()
    story.assigned(1, 1, 0)
    return story
