"""The emitter's settings: one table of good and bad ones."""

import pytest

from producers import EmitterConfig, InvalidConfiguration, MissingConfiguration
from producers._config import redacted

URL = "redis://default:S3cret@redis.example:6380/0"
SECRET = "S3cret"  # noqa: S105 - the word that no message may show

GOOD = {
    "host only": ({"REDIS_URL": "redis://localhost"}, {"redis_url": "redis://localhost", "shards": 1}),
    "white space of a secret file": ({"REDIS_URL": f" {URL}\n"}, {"redis_url": URL}),
    "TLS": ({"REDIS_URL": "rediss://localhost:6380/0?ssl_cert_reqs=required"}, {"cluster": False}),
    "socket": ({"REDIS_URL": "unix:///run/valkey/valkey.sock?db=1"}, {"stream": "usage:events"}),
    "IPv6": ({"REDIS_URL": "redis://[::1]:6379/2"}, {"durability": "server"}),
    "database number": ({"REDIS_URL": "redis://localhost:6379/15"}, {}),
    "shards": ({"REDIS_URL": URL, "USAGE_STREAM_SHARDS": "1024"}, {"shards": 1024}),
    "empty values are defaults": (
        {"REDIS_URL": URL, "USAGE_STREAM_SHARDS": "", "USAGE_STREAM": "", "REDIS_CLUSTER": ""},
        {"shards": 1, "stream": "usage:events", "cluster": False},
    ),
    "cluster": ({"REDIS_URL": URL, "REDIS_CLUSTER": "True"}, {"cluster": True}),
    "no cluster": ({"REDIS_URL": URL, "REDIS_CLUSTER": "off"}, {"cluster": False}),
    "sentinels": (
        {"REDIS_URL": "redis://:S3cret@MyPrimary/0", "REDIS_SENTINELS": "s-1:26379, user:pw@[::1]:26380"},
        {"sentinels": ("s-1:26379", "user:pw@[::1]:26380"), "sentinel_service": "MyPrimary"},
    ),
    "fsync": ({"REDIS_URL": URL, "USAGE_DURABILITY": "fsync"}, {"durability": "fsync"}),
    "spool": ({"REDIS_URL": URL, "USAGE_SPOOL_DIR": "/var/spool/usage"}, {"spool_dir": "/var/spool/usage"}),
    "another stream": ({"REDIS_URL": URL, "USAGE_STREAM": "acme:usage"}, {"stream": "acme:usage"}),
}

BAD = {
    "no scheme": ({"REDIS_URL": "redis.example:6379"}, "REDIS_URL .*without a scheme"),
    "another scheme": ({"REDIS_URL": "http://localhost"}, "REDIS_URL is http://…"),
    "no host": ({"REDIS_URL": "redis:///0"}, "names no host"),
    "nothing behind the scheme": ({"REDIS_URL": "redis://"}, "names no host"),
    "no socket": ({"REDIS_URL": "unix://"}, "needs its path"),
    "port not a number": ({"REDIS_URL": "redis://u:S3cret@host:port/0"}, "host or port cannot be read"),
    "port 0": ({"REDIS_URL": "redis://host:0/0"}, "names no host"),
    "port too large": ({"REDIS_URL": "redis://host:65536/0"}, "cannot be read"),
    "unescaped / in the password": ({"REDIS_URL": "redis://u:S3cret/x@host:6379/0"}, "REDIS_URL is redis://"),
    "forgotten @": ({"REDIS_URL": "redis://default:S3cret/0"}, "cannot be read"),
    "white space": ({"REDIS_URL": "redis://u:S3cret @host/0"}, "white space"),
    "database by name": ({"REDIS_URL": "redis://host/main"}, "database number"),
    "text mode": ({"REDIS_URL": f"{URL}?decode_responses=true"}, "sets decode_responses"),
    "shards 0": ({"REDIS_URL": URL, "USAGE_STREAM_SHARDS": "0"}, "USAGE_STREAM_SHARDS is '0'"),
    "shards 1025": ({"REDIS_URL": URL, "USAGE_STREAM_SHARDS": "1025"}, "USAGE_STREAM_SHARDS is '1025'"),
    "shards in other digits": ({"REDIS_URL": URL, "USAGE_STREAM_SHARDS": "٤"}, "USAGE_STREAM_SHARDS is"),
    "shards not whole": ({"REDIS_URL": URL, "USAGE_STREAM_SHARDS": "1.5"}, "USAGE_STREAM_SHARDS is '1.5'"),
    "braces": ({"REDIS_URL": URL, "USAGE_STREAM": "usage:{events}"}, "USAGE_STREAM is 'usage:{events}'"),
    "stream of corrections": ({"REDIS_URL": URL, "USAGE_STREAM": "a:corrections"}, "taken by the stream of"),
    "cluster unclear": ({"REDIS_URL": URL, "REDIS_CLUSTER": "maybe"}, "REDIS_CLUSTER is 'maybe'"),
    "two ways": (
        {"REDIS_URL": URL, "REDIS_CLUSTER": "true", "REDIS_SENTINELS": "s:26379"},
        "REDIS_CLUSTER and REDIS_SENTINELS",
    ),
    "cluster on a socket": ({"REDIS_URL": "unix:///s", "REDIS_CLUSTER": "true"}, "is a socket"),
    "cluster with a database": ({"REDIS_URL": "redis://h/3", "REDIS_CLUSTER": "true"}, "database 0 only"),
    "sentinel without a port": ({"REDIS_URL": URL, "REDIS_SENTINELS": "u:S3cret@s-1"}, "REDIS_SENTINELS has"),
    "sentinel's port": (
        {"REDIS_URL": URL, "REDIS_SENTINELS": "s-1:99999"},
        "REDIS_SENTINELS has 's-1:99999'",
    ),
    "durability": ({"REDIS_URL": URL, "USAGE_DURABILITY": "disk"}, "USAGE_DURABILITY is 'disk'"),
}


class TestEmitterConfig:
    @pytest.mark.parametrize(("environ", "expected"), GOOD.values(), ids=GOOD)
    def test_takes(self, environ: dict[str, str], expected: dict[str, object]) -> None:
        config = EmitterConfig.from_env(environ)
        assert {name: getattr(config, name) for name in expected} == expected

    @pytest.mark.parametrize(("environ", "message"), BAD.values(), ids=BAD)
    def test_refuses(self, environ: dict[str, str], message: str) -> None:
        with pytest.raises(InvalidConfiguration, match=message) as caught:
            EmitterConfig.from_env(environ)
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("environ", [{}, {"REDIS_URL": ""}, {"REDIS_URL": "  "}])
    def test_names_the_missing_url_with_an_example(self, environ: dict[str, str]) -> None:
        with pytest.raises(MissingConfiguration, match=r"REDIS_URL is not set.*redis://") as caught:
            EmitterConfig.from_env(environ)
        assert len(caught.value.problems) == 1

    def test_tells_every_problem_at_once(self) -> None:
        environ = {
            "USAGE_STREAM_SHARDS": "x",
            "REDIS_CLUSTER": "y",
            "USAGE_DURABILITY": "z",
            "USAGE_STREAM": "{",
        }
        with pytest.raises(InvalidConfiguration) as caught:
            EmitterConfig.from_env(environ)
        named = [problem.split()[0] for problem in caught.value.problems]
        expected = ["REDIS_URL", "USAGE_STREAM_SHARDS", "REDIS_CLUSTER", "USAGE_DURABILITY", "USAGE_STREAM"]
        assert named == expected

    def test_is_checked_when_made_by_hand(self) -> None:
        with pytest.raises(InvalidConfiguration, match="USAGE_STREAM_SHARDS is 2000"):
            EmitterConfig(redis_url=URL, shards=2000)

    def test_never_shows_a_password(self) -> None:
        config = EmitterConfig(redis_url=URL, sentinels=(f"u:{SECRET}@s:26379",))
        assert SECRET not in repr(config)
        assert config.redacted_url == "redis://***@redis.example:6380/0"


class TestRedacted:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("redis://u:S3c@ret@h:1/0", "redis://***@h:1/0"),
            ("redis://u:S3c/ret@h", "redis://***@h"),
            ("unix:///s?username=u&password=S3cret&db=1", "unix:///s?username=***&password=***&db=1"),
            ("from redis://u:S3cret@h:1 and redis://:S3cret@g", "from redis://***@h:1 and redis://***@g"),
            ("Connection refused", "Connection refused"),
        ],
    )
    def test_hides_credentials(self, text: str, expected: str) -> None:
        assert redacted(text) == expected
