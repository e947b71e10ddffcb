"""Settings: defaults, refusals, and .env.example as their mirror."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from producers import _config as producer_config
from worker.database_url import Database, DatabaseURLBuilder, PoolMode
from worker.entrypoints.cli import outbox
from worker.errors import ConfigurationError
from worker.settings import DatabaseSettings, Settings, load_database_settings, load_settings

SECRET = "S3cretWord"  # noqa: S105 - not one: what no message may show
REPOSITORY = Path(__file__).parents[2]
ENVIRON = {
    "PLATFORM_DATABASE_URL": f"postgresql://app:{SECRET}@db/alwrity_platform",
    "USER_DATA_DATABASE_URL": f"postgresql://app:{SECRET}@db/alwrity_user_data",
    "REDIS_URL": f"redis://default:{SECRET}@cache:6379/0",
}


def refusal_of(environ: Mapping[str, str]) -> str:
    """The message with which these settings are refused; it never holds the secret."""
    with pytest.raises(ConfigurationError) as refused:
        load_settings(environ)
    message = str(refused.value)
    assert SECRET not in message
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    return message


class TestDefaults:
    def test_are_those_of_the_contract(self) -> None:
        settings = load_settings(ENVIRON)
        expected = {
            "db_pool_size": 20,
            "db_max_overflow": 30,
            "db_pool_timeout": 30,
            "db_pool_recycle": 3600,
            "db_connect_timeout": 10,
            "db_statement_timeout_ms": 60000,
            "usage_worker_pool_size": 2,
            "database_echo": False,
            "environment": "development",
            "redis_url": ENVIRON["REDIS_URL"],
            "celery_broker_url": ENVIRON["REDIS_URL"],
            "celery_result_backend": ENVIRON["REDIS_URL"],
            "limits_redis_url": ENVIRON["REDIS_URL"],
            "usage_stream": "usage:events",
            "usage_stream_shards": 1,
            "usage_consumer_group": "usage-workers",
            "usage_batch_size": 5000,
            "usage_batch_linger_ms": 20,
            "usage_max_age_days": 35,
            "usage_max_future_seconds": 300,
            "usage_stream_retention_hours": 24,
            "usage_stream_max_mb": 1024,
            "usage_reconcile_interval_seconds": 300,
            "usage_audit_interval_seconds": 900,
            "usage_reconcile_max_change_share": Decimal("0.2"),
            "usage_default_plan": None,
        }
        assert {name: getattr(settings, name) for name in expected} == expected

    def test_owner_and_audit_are_the_runtime_login(self) -> None:
        target = load_settings(ENVIRON).database(Database.USER_DATA)
        assert target.owner_url is target.audit_url is target.url is target.migration_url
        assert target.direct_url is None
        assert target.pool_mode is PoolMode.SESSION

    def test_the_database_part_needs_no_redis(self) -> None:
        environ = {name: value for name, value in ENVIRON.items() if name != "REDIS_URL"}
        settings = load_database_settings(environ)
        assert type(settings) is DatabaseSettings
        assert settings.database(Database.PLATFORM).url.database == "alwrity_platform"

    def test_come_from_the_process_when_no_mapping_is_given(self) -> None:
        program = "from worker.settings import load_settings; print(load_settings().db_pool_size)"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**ENVIRON, "DB_POOL_SIZE": "7"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout == "7\n"

    def test_an_env_file_is_not_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / ".env").write_text("DB_POOL_SIZE=7\n")
        monkeypatch.chdir(tmp_path)
        assert load_settings(ENVIRON).db_pool_size == 20


class TestReading:
    def test_takes_every_plain_variable(self) -> None:
        values = {
            "DB_POOL_SIZE": " 7 ",
            "DB_POOL_TIMEOUT": "0.5",
            "DATABASE_ECHO": "true",
            "ENVIRONMENT": "production",
            "USAGE_RECONCILE_MAX_CHANGE_SHARE": "0.05",
            "USAGE_DEFAULT_PLAN": "free",
            "USAGE_STREAM_SHARDS": "4",
        }
        settings = load_settings({**ENVIRON, **values})
        assert (settings.db_pool_size, settings.db_pool_timeout, settings.database_echo) == (7, 0.5, True)
        assert (settings.environment, settings.usage_default_plan) == ("production", "free")
        assert settings.usage_reconcile_max_change_share == Decimal("0.05")
        assert settings.usage_stream_shards == 4

    def test_takes_blank_as_missing(self) -> None:
        assert load_settings({**ENVIRON, "DB_POOL_SIZE": " ", "CELERY_BROKER_URL": ""}) == load_settings(
            ENVIRON
        )
        assert "PLATFORM_DATABASE_URL: missing" in refusal_of({**ENVIRON, "PLATFORM_DATABASE_URL": " "})

    def test_does_not_mistake_other_variables_for_its_own(self) -> None:
        environ = {**ENVIRON, "PLATFORM": "linux", "PRODUCER": "x", "USER_DATA": "y"}
        assert load_settings(environ) == load_settings(ENVIRON)

    def test_is_frozen(self) -> None:
        settings = load_settings(ENVIRON)
        with pytest.raises(ValidationError):
            settings.db_pool_size = 3  # type: ignore[misc]  # that it is refused is the point

    def test_shows_no_password(self) -> None:
        assert SECRET not in repr(load_settings(ENVIRON).platform)
        assert SECRET not in repr(load_settings(ENVIRON))

    def test_each_database_has_a_pool_mode(self) -> None:
        settings = load_settings(
            {**ENVIRON, "DB_POOL_MODE": "transaction", "PLATFORM_DB_POOL_MODE": "session"}
        )
        assert settings.platform.pool_mode is PoolMode.SESSION
        assert settings.user_data.pool_mode is PoolMode.TRANSACTION


class TestRefusals:
    def test_lists_every_problem_at_once(self) -> None:
        message = refusal_of({"DB_POOL_SIZE": "many", "USAGE_BATCH_SIZE": "0", "DB_POOL_MODE": "fast"})
        assert message.startswith("6 settings are wrong or missing.")
        for variable in ("PLATFORM_DATABASE_URL", "USER_DATA_DATABASE_URL", "REDIS_URL", "DB_POOL_MODE"):
            assert variable in message
        assert "Found:   'many'\n  Example: DB_POOL_SIZE=20" in message
        assert "Example: USAGE_BATCH_SIZE=5000" in message
        assert "pydantic" not in message.lower()

    def test_names_one_missing_variable(self) -> None:
        environ = {name: value for name, value in ENVIRON.items() if name != "PLATFORM_DATABASE_URL"}
        assert refusal_of(environ) == (
            "PLATFORM_DATABASE_URL: missing.\n"
            "  Example: PLATFORM_DATABASE_URL=postgresql://alwrity_app:PASSWORD@localhost:5432/alwrity_platform"
        )

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("DB_POOL_SIZE", "0"),
            ("DB_POOL_SIZE", "-1"),
            ("DB_POOL_SIZE", "2.5"),
            ("DB_MAX_OVERFLOW", "-1"),
            ("DB_POOL_TIMEOUT", "0"),
            ("DB_POOL_TIMEOUT", "nan"),
            ("DB_POOL_RECYCLE", "0"),
            ("DB_CONNECT_TIMEOUT", "0"),
            ("DB_STATEMENT_TIMEOUT_MS", "0"),
            ("USAGE_WORKER_POOL_SIZE", "0"),
            ("USAGE_RECONCILE_MAX_CHANGE_SHARE", "1.5"),
            ("USAGE_RECONCILE_MAX_CHANGE_SHARE", "0"),
            ("USAGE_MAX_AGE_DAYS", "0"),
            ("USAGE_MAX_FUTURE_SECONDS", "-1"),
            ("USAGE_STREAM_SHARDS", "0"),
            ("DATABASE_ECHO", "perhaps"),
            ("ENVIRONMENT", "a b"),
            ("REDIS_URL", "http://cache"),
            ("CELERY_BROKER_URL", "amqp://guest:S3cretWord@mq"),
            ("CELERY_RESULT_BACKEND", "db+postgresql://app:S3cretWord@db/x"),
            ("LIMITS_REDIS_URL", "sentinel://:S3cretWord@host:26379"),
        ],
    )
    def test_names_a_bad_value(self, variable: str, value: str) -> None:
        assert variable in refusal_of({**ENVIRON, variable: value}).partition("\n")[0]

    def test_two_urls_of_one_database(self) -> None:
        same = "postgresql://other@DB:5432/alwrity_platform"
        message = refusal_of({**ENVIRON, "USER_DATA_DATABASE_URL": same})
        assert message.startswith(
            "PLATFORM_DATABASE_URL and USER_DATA_DATABASE_URL: both reach the same database"
        )

    def test_a_url_and_the_other_databases_owner(self) -> None:
        message = refusal_of(
            {**ENVIRON, "PLATFORM_DATABASE_OWNER_URL": "postgresql://owner@db/alwrity_user_data"}
        )
        assert "PLATFORM_DATABASE_OWNER_URL: reaches another database than PLATFORM_DATABASE_URL" in message
        assert "PLATFORM_DATABASE_OWNER_URL and USER_DATA_DATABASE_URL: both reach the same" in message

    @pytest.mark.parametrize("kind", ["OWNER", "AUDIT"])
    def test_an_owner_or_auditor_somewhere_else(self, kind: str) -> None:
        stray = f"postgresql://owner:{SECRET}@elsewhere/alwrity_platform"
        message = refusal_of({**ENVIRON, f"PLATFORM_DATABASE_{kind}_URL": stray})
        assert f"PLATFORM_DATABASE_{kind}_URL: reaches another database" in message
        assert "PLATFORM_DATABASE_DIRECT_URL" in message

    def test_a_direct_way_to_another_database(self) -> None:
        message = refusal_of({**ENVIRON, "PLATFORM_DATABASE_DIRECT_URL": "postgresql://app@direct/other"})
        assert "PLATFORM_DATABASE_DIRECT_URL: reaches another database" in message

    def test_a_cluster_without_a_broker(self) -> None:
        message = refusal_of({**ENVIRON, "REDIS_CLUSTER": "true"})
        assert message.startswith(
            "CELERY_BROKER_URL: missing, and beside REDIS_CLUSTER=true it has to be named"
        )

    def test_sentinels_without_a_broker(self) -> None:
        message = refusal_of({**ENVIRON, "REDIS_SENTINELS": "s1:26379,s2:26379"})
        assert message.startswith("CELERY_BROKER_URL: missing, and beside REDIS_SENTINELS it has to be named")


class TestBroker:
    def test_a_socket_is_spelled_as_kombu_does(self) -> None:
        settings = load_settings({**ENVIRON, "REDIS_URL": "unix:///run/valkey.sock?db=3"})
        assert settings.redis_url == settings.limits_redis_url == "unix:///run/valkey.sock?db=3"
        assert settings.celery_broker_url == "redis+socket:///run/valkey.sock?virtual_host=3"
        assert settings.celery_result_backend == settings.celery_broker_url

    def test_beside_a_cluster_results_go_to_the_broker(self) -> None:
        broker = "redis://broker:6379/1"
        settings = load_settings({**ENVIRON, "REDIS_CLUSTER": "true", "CELERY_BROKER_URL": broker})
        assert (settings.celery_broker_url, settings.celery_result_backend) == (broker, broker)
        assert settings.limits_redis_url == ENVIRON["REDIS_URL"]

    def test_results_stay_with_redis_url_when_only_the_broker_is_named(self) -> None:
        settings = load_settings({**ENVIRON, "CELERY_BROKER_URL": "redis://broker:6379/1"})
        assert settings.celery_result_backend == ENVIRON["REDIS_URL"]


class TestMigrationUrl:
    DIRECT = "postgresql://app:d@direct/alwrity_platform"
    OWNER = "postgresql://owner:o@db/alwrity_platform"

    def test_is_the_owners_login_by_the_direct_way(self) -> None:
        environ = {**ENVIRON, "DB_POOL_MODE": "transaction", "PLATFORM_DATABASE_DIRECT_URL": self.DIRECT}
        target = load_settings({**environ, "PLATFORM_DATABASE_OWNER_URL": self.OWNER}).platform
        assert target.migration_url.libpq == "postgresql://owner:o@direct/alwrity_platform"
        assert target.mode_of(target.migration_url) is PoolMode.SESSION
        assert target.mode_of(target.owner_url) is PoolMode.TRANSACTION
        assert load_settings(environ).platform.migration_url.libpq == self.DIRECT

    def test_is_the_owners_url_when_that_is_direct_already(self) -> None:
        owner = "postgresql://owner:o@direct/alwrity_platform"
        environ = {"PLATFORM_DATABASE_DIRECT_URL": self.DIRECT, "PLATFORM_DATABASE_OWNER_URL": owner}
        assert load_settings({**ENVIRON, **environ}).platform.migration_url.libpq == owner


class Recorder(dict[str, str]):
    """An environment with nothing but a server, that remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]  # one overload
        self.asked.add(key)
        return "redis://localhost" if key == "REDIS_URL" else default


def producer_variables() -> set[str]:
    """Every variable that an emitter reads."""
    recorder = Recorder()
    producer_config.EmitterConfig.from_env(recorder)
    return recorder.asked


def example_lines() -> Iterator[tuple[str, str, bool]]:
    """Name, value and whether it is commented out, of every setting in .env.example."""
    for line in (REPOSITORY / ".env.example").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(#)?([A-Z][A-Z0-9_]*)=(.*)", line)
        if match:
            yield match[2], match[3], match[1] is not None


class TestEnvExample:
    def test_has_every_variable_once_and_no_other(self) -> None:
        plain = {name.upper() for name, field in Settings.model_fields.items() if not field.is_required()}
        servers = {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "LIMITS_REDIS_URL", "DB_POOL_MODE"}
        databases = {name for database in Database for name in DatabaseURLBuilder.variables(database)}
        names = [name for name, _, _ in example_lines()]
        assert sorted(names) == sorted(plain | servers | databases | producer_variables() | {outbox.VARIABLE})

    def test_shows_every_default(self) -> None:
        shown = {name: value for name, value, commented in example_lines() if not commented}
        for name, field in Settings.model_fields.items():
            if not field.is_required() and field.default is not None:
                assert shown[name.upper()] == str(field.default).replace("False", "false"), name

    def test_changes_nothing_when_it_is_used_as_it_is(self) -> None:
        given = {name: value for name, value, commented in example_lines() if not commented and value}
        assert load_settings({**given, **ENVIRON}) == load_settings(ENVIRON)

    def test_lacks_only_what_has_no_default(self) -> None:
        given = {name: value for name, value, commented in example_lines() if not commented}
        missing = {name for name, value in given.items() if not value}
        assert missing == {"PLATFORM_DATABASE_URL", "USER_DATA_DATABASE_URL", "REDIS_URL"}
        assert refusal_of(given).startswith("3 settings are wrong or missing.")

    def test_its_examples_work(self) -> None:
        text = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
        blocks = re.findall(r"((?:^#   [A-Z_]+=.*\n)+)", text, flags=re.M)
        assert len(blocks) == 4, "local, Render, Supabase (session pooler), Supabase (transaction pooler)"
        for block in blocks:
            environ = dict(line[4:].split("=", 1) for line in block.splitlines())
            settings = load_settings({"REDIS_URL": "redis://localhost", **environ})
            assert not settings.platform.url.same_database_as(settings.user_data.url)

    def test_can_be_read_by_a_shell(self) -> None:
        done = subprocess.run(
            ["/bin/sh", "-c", f"set -aeu; . {REPOSITORY / '.env.example'}; env"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
            env={"PATH": os.defpath},
        )
        assert "DB_POOL_SIZE=20" in done.stdout.splitlines()
