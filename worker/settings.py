"""The worker's only reader of the environment: two frozen objects, and one message for every mistake."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError

from producers import _config as producer_config
from worker.database_url import Database, DatabaseURL, DatabaseURLBuilder, PoolMode
from worker.errors import ConfigurationError

_KINDS: Final[tuple[Literal["", "OWNER", "AUDIT", "DIRECT"], ...]] = ("", "OWNER", "AUDIT", "DIRECT")
_Loaded = TypeVar("_Loaded", bound="DatabaseSettings")


@dataclasses.dataclass(frozen=True)
class DatabaseTarget:
    """One of the two databases: every way to it, and what stands in between."""

    database: Database
    url: DatabaseURL
    owner_url: DatabaseURL
    audit_url: DatabaseURL
    direct_url: DatabaseURL | None
    pool_mode: PoolMode

    @property
    def migration_url(self) -> DatabaseURL:
        """This property will be the owner's login by the way around the pooler, where one is declared.

        Session locks and `SET` do not hold behind a transaction pooler, so migrations go this way.
        """
        if self.direct_url is None or not self.owner_url.same_server_as(self.url):
            return self.owner_url
        if self.owner_url is self.url or self.owner_url.username is None:
            return self.direct_url
        login = self.owner_url.sqlalchemy
        password = None if login.password is None else str(login.password)
        return dataclasses.replace(
            self.direct_url.with_login(self.owner_url.username, password), variable=self.owner_url.variable
        )

    def mode_of(self, url: DatabaseURL) -> PoolMode:
        """This function will return the pool mode of one way; around the pooler it is always `session`."""
        direct = self.direct_url is not None and url.same_server_as(self.direct_url)
        return PoolMode.SESSION if direct else self.pool_mode


class DatabaseSettings(BaseModel):
    """What a program needs that uses `worker.db` alone; field `db_pool_size` is variable `DB_POOL_SIZE`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    platform: InstanceOf[DatabaseTarget]
    user_data: InstanceOf[DatabaseTarget]

    db_pool_size: int = Field(20, ge=1, le=1000)
    db_max_overflow: int = Field(30, ge=0, le=1000)
    db_pool_timeout: float = Field(30, gt=0, le=3600)
    db_pool_recycle: int = Field(3600, ge=1)
    db_connect_timeout: int = Field(10, ge=1, le=300)
    db_statement_timeout_ms: int = Field(60000, ge=1)
    usage_lock_timeout_ms: int = Field(10000, ge=1)
    usage_idle_in_transaction_timeout_ms: int = Field(60000, ge=1)
    usage_worker_pool_size: int = Field(2, ge=1, le=100)
    database_echo: bool = False
    environment: str = Field("development", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")

    def database(self, database: Database) -> DatabaseTarget:
        """This function will return one of the two databases."""
        return self.platform if database is Database.PLATFORM else self.user_data


class Settings(DatabaseSettings):
    """Everything the worker reads from its environment."""

    producer: InstanceOf[producer_config.EmitterConfig]

    celery_broker_url: str = Field(repr=False)
    celery_result_backend: str = Field(repr=False)
    limits_redis_url: str = Field(repr=False)

    usage_consumer_group: str = Field("usage-workers", min_length=1, max_length=128)
    usage_batch_size: int = Field(5000, ge=1, le=100_000)
    usage_batch_linger_ms: int = Field(20, ge=0, le=10_000)
    usage_max_age_days: int = Field(35, ge=1, le=3650)
    usage_max_future_seconds: int = Field(300, ge=0, le=86_400)
    usage_stream_retention_hours: int = Field(24, ge=1, le=24 * 365)
    usage_stream_max_mb: int = Field(1024, ge=1)
    usage_poison_deliveries: int = Field(5, ge=3, le=100)
    usage_flood_share: Decimal = Field(Decimal("0.5"), gt=0, le=1)
    usage_flood_events: int = Field(1000, ge=1)
    usage_flood_window_seconds: int = Field(300, ge=1, le=86_400)
    usage_reconcile_interval_seconds: int = Field(300, ge=1)
    usage_audit_interval_seconds: int = Field(900, ge=1)
    usage_books_interval_seconds: int = Field(3600, ge=1)
    usage_reconcile_max_change_share: Decimal = Field(Decimal("0.2"), gt=0, le=1)
    usage_default_plan: str | None = None
    usage_cost_policy: Literal["reported_first", "computed_first"] = "reported_first"
    usage_cost_divergence_percent: Decimal = Field(Decimal(5), gt=0, le=1000, allow_inf_nan=False)

    @property
    def redis_url(self) -> str:
        """This property will be the URL of the server that holds the stream."""
        return self.producer.redis_url

    @property
    def usage_stream(self) -> str:
        """This property will be what the stream's keys begin with."""
        return self.producer.stream

    @property
    def usage_stream_shards(self) -> int:
        """This property will be the number of shards."""
        return self.producer.shards


def load_database_settings(environ: Mapping[str, str] | None = None) -> DatabaseSettings:
    """This function will read the database part, from the process's environment where none is given.

    Raises one ConfigurationError that lists every problem with the variable, what was found and an
    example that works.
    """
    return _load(DatabaseSettings, environ, {}, [])


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """This function will read everything the worker needs; see `load_database_settings` for the errors."""
    environ = _environment(environ)
    problems: list[str] = []
    values: dict[str, Any] = {}
    try:
        producer = producer_config.EmitterConfig.from_env(environ)
    except producer_config.InvalidConfiguration as error:
        problems.extend(error.problems)
    else:
        values["producer"] = producer
        values.update(_redis_urls(environ, producer, problems))
    return _load(Settings, environ, values, problems)


def _environment(environ: Mapping[str, str] | None) -> dict[str, str]:
    """This function will drop what is blank: a variable that is set to nothing counts as missing."""
    given = os.environ if environ is None else environ  # noqa: TID251 - the one place that reads it
    return {name: value for name, value in given.items() if value.strip()}


def _load(
    kind: type[_Loaded], environ: Mapping[str, str] | None, values: dict[str, Any], problems: list[str]
) -> _Loaded:
    environ = _environment(environ)
    targets = _targets(DatabaseURLBuilder(environ), problems)
    # The required ones are built above; what is read by its name alone has a default.
    plain = {name for name, field in kind.model_fields.items() if not field.is_required()}
    values |= {name: environ[name.upper()].strip() for name in plain if name.upper() in environ}
    try:
        settings = kind.model_validate({**values, **targets})
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False, include_context=False, include_input=False):
            name = str(error["loc"][0])
            if name in plain:
                problems.append(_problem(kind, name, environ.get(name.upper()), error["msg"]))
        raise _refusal(problems) from None
    if problems:
        raise _refusal(problems)
    return settings


def _refusal(problems: list[str]) -> ConfigurationError:
    if len(problems) == 1:
        return ConfigurationError(problems[0])
    return ConfigurationError("\n".join([f"{len(problems)} settings are wrong or missing.", *problems]))


def _problem(kind: type[DatabaseSettings], name: str, found: str | None, reason: str) -> str:
    default = kind.model_fields[name].default
    shown = "nothing" if found is None else repr(producer_config.redacted(found)[:60])
    return f"{name.upper()}: {reason}.\n  Found:   {shown}\n  Example: {name.upper()}={default}"


def _targets(builder: DatabaseURLBuilder, problems: list[str]) -> dict[str, DatabaseTarget]:
    """This function will build both databases, and refuse two that are one or one that is two."""
    targets: dict[str, DatabaseTarget] = {}
    for database in Database:
        count = len(problems)
        urls: dict[str, DatabaseURL | None] = {}
        for variant in _KINDS:
            try:
                urls[variant] = builder.build(database, variant)
            except ConfigurationError as error:
                problems.append(str(error))
        mode = PoolMode.SESSION
        try:
            mode = builder.pool_mode(database)
        except ConfigurationError as error:
            if str(error) not in problems:
                problems.append(str(error))
        url = urls.get("")
        if "" in urls and url is None:
            problems.append(
                f"{database.prefix}_DATABASE_URL: missing.\n"
                f"  Example: {database.prefix}_DATABASE_URL={database.example}"
            )
        if url is None or len(problems) > count:
            continue
        owner, audit, direct = (urls[variant] for variant in _KINDS[1:])
        target = DatabaseTarget(database, url, owner or url, audit or url, direct, mode)
        problems.extend(_strays(target))
        targets[database.value] = target
    if len(targets) == len(Database):
        problems.extend(_shared(targets["platform"], targets["user_data"]))
    return targets


def _ways(target: DatabaseTarget) -> list[DatabaseURL]:
    ways = [target.url, target.owner_url, target.audit_url, target.direct_url]
    return list({way.variable: way for way in ways if way is not None}.values())


def _strays(target: DatabaseTarget) -> list[str]:
    """This function will name the URLs of one database that lead somewhere else."""
    problems = []
    if target.direct_url is not None and target.direct_url.database != target.url.database:
        problems.append(_stray(target.direct_url, target.url, "Write the same database name in both."))
    known = [target.url] if target.direct_url is None else [target.url, target.direct_url]
    for url in (target.owner_url, target.audit_url):
        if not any(url.same_database_as(way) for way in known):
            advice = (
                f"Write the same host, port and database in both; if {url.variable} goes around a pooler, "
                f"set {target.database.prefix}_DATABASE_DIRECT_URL to that way."
            )
            problems.append(_stray(url, target.url, advice))
    return problems


def _stray(url: DatabaseURL, runtime: DatabaseURL, advice: str) -> str:
    return (
        f"{url.variable}: reaches another database than {runtime.variable}.\n"
        f"  Found:   {url.redacted} and {runtime.redacted}\n  Next step: {advice}"
    )


def _shared(platform: DatabaseTarget, user_data: DatabaseTarget) -> list[str]:
    for one in _ways(platform):
        for other in _ways(user_data):
            if one.same_database_as(other):
                return [
                    f"{one.variable} and {other.variable}: both reach the same database, and the product "
                    f"needs two.\n  Found:   {one.redacted} and {other.redacted}\n"
                    f"  Example: {one.variable}={Database.PLATFORM.example}\n"
                    f"           {other.variable}={Database.USER_DATA.example}"
                ]
    return []


def _redis_urls(
    environ: Mapping[str, str], producer: producer_config.EmitterConfig, problems: list[str]
) -> dict[str, str]:
    """This function will settle broker, result backend and the limits' server: REDIS_URL by default."""
    elsewhere = (
        "REDIS_CLUSTER=true" if producer.cluster else "REDIS_SENTINELS" if producer.sentinels else None
    )
    given = {
        name: environ[name].strip()
        for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "LIMITS_REDIS_URL")
        if name in environ
    }
    for name, url in given.items():
        schemes = ("redis", "rediss", "unix") + (
            ("redis+socket", "sentinel") if name != "LIMITS_REDIS_URL" else ()
        )
        if url.partition("://")[0] not in schemes or not url.partition("://")[2]:
            problems.append(
                f"{name}: has to begin with {', '.join(f'{scheme}://' for scheme in schemes)}.\n"
                f"  Found:   {producer_config.redacted(url)}\n  Example: {name}=redis://localhost:6379/1"
            )
    if elsewhere and "CELERY_BROKER_URL" not in given:
        problems.append(
            f"CELERY_BROKER_URL: missing, and beside {elsewhere} it has to be named, since Celery cannot "
            "reach its broker by REDIS_URL then.\n  Example: CELERY_BROKER_URL=redis://localhost:6379/0"
        )
    broker = given.get("CELERY_BROKER_URL", producer.redis_url)
    # Where the stream's server is no plain one, results go to the broker's.
    backend = given.get("CELERY_RESULT_BACKEND", broker if elsewhere else producer.redis_url)
    return {
        "celery_broker_url": _for_kombu(broker),
        "celery_result_backend": _for_kombu(backend),
        "limits_redis_url": given.get("LIMITS_REDIS_URL", producer.redis_url),
    }


def _for_kombu(url: str) -> str:
    """This function will spell a unix:// URL as kombu does; any other stays as it is."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    names = parts.query.replace("db=", "virtual_host=")
    return f"redis+socket://{parts.netloc}{parts.path}{'?' + names if names else ''}"
