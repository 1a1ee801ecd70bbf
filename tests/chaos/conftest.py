"""Stories for the oracle."""

import pytest

from tests.chaos.stories import Story


@pytest.fixture
def story(tmp_path):
    """Worker 1 has partition 0 from second 1 on; ten records, each of a key of its own."""
    story = Story(tmp_path)
    story.assigned(1, 1)
    return story
