"""Every contract test runs twice: on the fake, and on aiokafka with a real broker."""

import pytest

from tests.contract.clusters import FakeCluster, RealCluster


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
def unstopped_cluster(request):
    if request.param == "fake":
        return FakeCluster()
    servers = request.getfixturevalue("kafka").bootstrap_servers
    return RealCluster(servers, request.getfixturevalue("new_topic"))


@pytest.fixture
async def cluster(unstopped_cluster):
    yield unstopped_cluster
    await unstopped_cluster.stop()
