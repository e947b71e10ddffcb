"""Who may do what to which row: row-level security and grants as data.

This is what the product means today. The migrations hold the same as frozen SQL, `worker.db` compares a live
database with it and repairs differences, and the isolation tests loop over it, so that a new table is covered
the moment it is declared here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from worker.database_url import Database

OWNER = "usage_owner"
WORKER = "usage_worker"
AUDITOR = "usage_auditor"
APP = "usage_app"
TENANTS = "authenticated_users"

GROUP_ROLES: Mapping[str, str] = {
    OWNER: "owns every table and runs the migrations",
    WORKER: "what the worker needs, on the rows of every tenant",
    AUDITOR: "what the audits read, and the record they keep of it",
    APP: "the applications: nothing of their own but the way to become a tenant",
    TENANTS: "one tenant at a time, named by app.current_user_id",
}
"""The NOLOGIN roles that `usage-worker db init` creates; the operator's logins are members of them."""

BECOME_TENANT = (WORKER, APP, AUDITOR)
"""Roles that may SET ROLE to the tenants' role."""

CONTEXT_SETTING = "app.current_user_id"
TENANT_POLICY = "tenant_isolation"


class Command(enum.StrEnum):
    """A policy's command, in the catalog's words."""

    ALL = "ALL"
    SELECT = "SELECT"


class Privilege(enum.StrEnum):
    """A table privilege, in the catalog's words."""

    SELECT = "SELECT"
    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


READ = (Privilege.SELECT,)
APPEND = (Privilege.SELECT, Privilege.INSERT)
WRITE = (Privilege.SELECT, Privilege.INSERT, Privilege.UPDATE)
EVERYTHING = (Privilege.SELECT, Privilege.INSERT, Privilege.UPDATE, Privilege.DELETE)


@dataclass(frozen=True, slots=True)
class Grant:
    """Privileges of one role on one table; with `columns`, on these columns only."""

    role: str
    privileges: tuple[Privilege, ...]
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """One permissive policy. `check` is None where the command writes nothing."""

    name: str
    role: str
    command: Command
    using: str
    check: str | None


@dataclass(frozen=True, slots=True)
class TableSecurity:
    """What is declared for one table. Without a tenant column it has no row-level security."""

    table: str
    tenant_column: str | None
    grants: tuple[Grant, ...] = field(default=())

    @property
    def tenant_privileges(self) -> tuple[Privilege, ...]:
        """What a tenant may do to its own rows."""
        return tuple(p for grant in self.grants if grant.role == TENANTS for p in grant.privileges)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies that the table must have, and no others.

        The tenants' policy covers every command and checks what is written, also where tenants hold no
        privilege to write: a grant given by mistake must not open the rows of others. FORCE binds the owner
        too, so the owner has a policy; so has every other role that the grants let in.
        """
        if self.tenant_column is None:
            return ()
        own = tenant_expression(self.tenant_column)
        found = [
            Policy(TENANT_POLICY, TENANTS, Command.ALL, own, own),
            Policy("owner_all", OWNER, Command.ALL, "true", "true"),
            Policy("worker_all", WORKER, Command.ALL, "true", "true"),
        ]
        if any(grant.role == AUDITOR for grant in self.grants):
            found.append(Policy("auditor_read", AUDITOR, Command.SELECT, "true", None))
        return tuple(found)


def tenant_expression(column: str) -> str:
    """This function will give the condition that a row belongs to the tenant of the running transaction.

    The sub-select makes PostgreSQL evaluate the setting once per statement. A setting that was never set
    reads as NULL, one whose transaction has ended as '': both mean nobody.
    """
    return f"{column} = (select nullif(current_setting('{CONTEXT_SETTING}', true), '')::uuid)"


_DEAD_LETTER_FACTS = (
    "id",
    "stream",
    "stream_id",
    "shard",
    "entry_index",
    "raw_sha256",
    "reason",
    "event_id",
    "user_id",
    "target_id",
    "received_at",
    "stored_at",
    "replayed_at",
    "discarded_at",
    "replay_count",
)

_AUDITED = ("audited_entry_id", "audited_correction_id", "audited_at")

# What a repricing may change of a row of the log.
_PRICED = ("cost_usd", "cost_computed_usd", "cost_source", "price_version")

_PLATFORM = (
    TableSecurity("users", "id", (Grant(WORKER, WRITE), Grant(TENANTS, READ))),
    TableSecurity(
        "subscription_plans",
        None,
        (Grant(WORKER, WRITE), Grant(AUDITOR, READ), Grant(APP, READ), Grant(TENANTS, READ)),
    ),
    TableSecurity("user_subscriptions", "user_id", (Grant(WORKER, WRITE), Grant(TENANTS, READ))),
    TableSecurity("subscription_changes", "user_id", (Grant(WORKER, APPEND),)),
    # What was used is never changed: a correction is a row of its own. What it cost may be found out later.
    TableSecurity(
        "platform_usage_logs",
        "user_id",
        (
            Grant(WORKER, APPEND),
            Grant(WORKER, (Privilege.UPDATE,), _PRICED),
            Grant(AUDITOR, READ),
            Grant(TENANTS, READ),
        ),
    ),
    # Derived, so it may be rebuilt: the one table of the platform that the worker may delete from freely.
    TableSecurity(
        "usage_hourly", "user_id", (Grant(WORKER, EVERYTHING), Grant(AUDITOR, READ), Grant(TENANTS, READ))
    ),
    # The auditor says how far the books are proved, and nothing else in there.
    TableSecurity(
        "ingest_positions",
        None,
        (Grant(WORKER, WRITE), Grant(AUDITOR, READ), Grant(AUDITOR, (Privilege.UPDATE,), _AUDITED)),
    ),
    # The auditor counts dead letters; it has no business with what is in them.
    TableSecurity(
        "usage_dead_letters", "user_id", (Grant(WORKER, WRITE), Grant(AUDITOR, READ, _DEAD_LETTER_FACTS))
    ),
    TableSecurity("model_prices", None, (Grant(WORKER, APPEND), Grant(AUDITOR, READ))),
    TableSecurity("usage_repricings", None, (Grant(WORKER, WRITE), Grant(AUDITOR, READ))),
    TableSecurity("usage_repricing_events", None, (Grant(WORKER, APPEND), Grant(AUDITOR, READ))),
    TableSecurity("usage_seals", None, (Grant(WORKER, EVERYTHING), Grant(AUDITOR, EVERYTHING))),
    TableSecurity("usage_producers", None, (Grant(WORKER, EVERYTHING), Grant(AUDITOR, EVERYTHING))),
    TableSecurity("usage_number_positions", None, (Grant(WORKER, EVERYTHING), Grant(AUDITOR, EVERYTHING))),
    TableSecurity("audit_runs", None, (Grant(WORKER, WRITE), Grant(AUDITOR, WRITE))),
    TableSecurity("audit_findings", None, (Grant(WORKER, WRITE), Grant(AUDITOR, WRITE))),
    TableSecurity("job_runs", None, (Grant(WORKER, EVERYTHING), Grant(AUDITOR, READ))),
)

_TENANT_OWNED = (Grant(WORKER, READ), Grant(TENANTS, EVERYTHING))

_USER_DATA = (
    TableSecurity("user_profiles", "user_id", _TENANT_OWNED),
    TableSecurity("user_projects", "user_id", _TENANT_OWNED),
    TableSecurity("user_content_assets", "user_id", _TENANT_OWNED),
    TableSecurity("user_personas", "user_id", _TENANT_OWNED),
)

DECLARED: Mapping[Database, tuple[TableSecurity, ...]] = {
    Database.PLATFORM: _PLATFORM,
    Database.USER_DATA: _USER_DATA,
}
"""Every table of ours, per database."""

VERSION_TABLES: Mapping[Database, str] = {
    Database.PLATFORM: "alembic_version_platform",
    Database.USER_DATA: "alembic_version_user_data",
}
"""Alembic's own table: readable by every process that must prove the schema's revision."""

VERSION_READERS = (WORKER, AUDITOR, APP)


def tenant_tables(database: Database) -> Iterator[TableSecurity]:
    """This function will give the tables of a database whose rows belong to tenants."""
    return (table for table in DECLARED[database] if table.tenant_column is not None)
