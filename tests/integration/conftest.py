"""What the integration tests share beyond tests/fixtures."""

from __future__ import annotations

import pytest
import redis

from tests.integration.ingest_world import World
from worker.settings import Settings


@pytest.fixture
def world(bound: Settings, valkey: redis.Redis) -> World:
    """An empty shard, with the worker bound to its databases."""
    return World(valkey, bound.redis_url)
