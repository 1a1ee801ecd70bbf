"""Every unit test starts without a handler, and leaves none behind."""

import pytest

from faststream_concurrent_kafka import KafkaConcurrentHandler


@pytest.fixture(autouse=True)
def fresh_singleton():
    KafkaConcurrentHandler._instance = None
    yield
    assert KafkaConcurrentHandler._instance is None
