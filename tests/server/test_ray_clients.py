"""What ``test_clients`` asks of one server, asked of two behind Ray Serve."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_clients import *  # noqa: F403  its tests run here with the fixture below

from bench import clusters

pytestmark = pytest.mark.slow
pytest.importorskip("ray.serve", reason='Ray is not installed: pip install -e ".[ray]"')


@pytest.fixture(scope="module")
def demo() -> Iterator[clusters.Cluster]:
    with clusters.serving(min_replicas=2, max_replicas=2) as cluster:
        yield cluster
