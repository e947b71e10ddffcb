"""One table: what a server's error asks for."""

from __future__ import annotations

import pytest
import redis

from worker.entries import GroupMissing
from worker.errors import ConfigurationError
from worker.valkey import StreamTrouble, Trouble, translate, trouble_of


class TestTroubleOf:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (redis.ConnectionError("Connection refused"), Trouble.AGAIN),
            (redis.TimeoutError("Timeout reading"), Trouble.AGAIN),
            (redis.BusyLoadingError("Redis is loading the dataset in memory"), Trouble.AGAIN),
            (redis.ReadOnlyError("You can't write against a read only replica."), Trouble.AGAIN),
            (redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), Trouble.AGAIN),
            (redis.ResponseError("UNBLOCKED force unblock, instance state changed"), Trouble.AGAIN),
            (redis.ResponseError("UNBLOCKED the stream key no longer exists"), Trouble.AGAIN),
            (redis.ResponseError("MISCONF Errors writing to the AOF file: No space left"), Trouble.AGAIN),
            (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), Trouble.AGAIN),
            (redis.ResponseError("MASTERDOWN Link with MASTER is down"), Trouble.AGAIN),
            (redis.ResponseError("CLUSTERDOWN The cluster is down"), Trouble.AGAIN),
            (redis.exceptions.ClusterDownError("CLUSTERDOWN The cluster is down"), Trouble.AGAIN),
            (redis.exceptions.RedisClusterException("cannot reach the cluster"), Trouble.AGAIN),
            (
                redis.ResponseError("NOGROUP No such key 'usage:events:{0}' or consumer group"),
                Trouble.NO_GROUP,
            ),
            (redis.ResponseError("WRONGTYPE Operation against a key"), Trouble.CONFIGURATION),
            (redis.ResponseError("unknown command 'XAUTOCLAIM'"), Trouble.CONFIGURATION),
            (redis.ResponseError("CROSSSLOT Keys in request"), Trouble.CONFIGURATION),
            (redis.exceptions.NoPermissionError("this user has no permissions"), Trouble.CONFIGURATION),
            (redis.AuthenticationError("invalid username-password pair"), Trouble.CONFIGURATION),
            (redis.exceptions.AuthenticationWrongNumberOfArgsError("wrong number"), Trouble.CONFIGURATION),
        ],
        ids=lambda value: f"{type(value).__name__}: {value}" if isinstance(value, Exception) else str(value),
    )
    def test_says_what_to_do_next(self, error: redis.RedisError, expected: Trouble) -> None:
        assert trouble_of(error) is expected
        kinds = {
            Trouble.AGAIN: StreamTrouble,
            Trouble.NO_GROUP: GroupMissing,
            Trouble.CONFIGURATION: ConfigurationError,
        }
        assert type(translate(error)) is kinds[expected]
