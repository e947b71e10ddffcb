"""Brings the row-level security of both databases back to what is declared."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from worker import sqlstate
from worker.database_url import Database
from worker.db import _migrations
from worker.db._engines import Login
from worker.db._sessions import platform_session, user_data_session
from worker.errors import ConfigurationError
from worker.models import policies
from worker.models.live_policies import PolicyDifference, Problem, policy_differences

__all__ = ["PolicyDifference", "SecurityReport", "policy_differences", "setup_row_level_security"]


@dataclass(frozen=True, slots=True)
class SecurityReport:
    """What was repaired, and what is left for a person: tables and policies that somebody else made."""

    repaired: tuple[PolicyDifference, ...]
    remaining: tuple[PolicyDifference, ...]


def setup_row_level_security() -> SecurityReport:
    """This function will make policies, FORCE and grants of both databases equal to the declared ones.

    It runs as the owner, one transaction per database, and changes nothing where nothing differs, so it may
    run any number of times. A policy that is not ours is left alone and reported. Raises ConfigurationError
    when a table is missing or the owner's login may not become usage_owner.
    """
    with platform_session(login=Login.OWNER) as session:
        platform = _repair(session, Database.PLATFORM)
    with user_data_session(login=Login.OWNER, system=True) as session:
        user_data = _repair(session, Database.USER_DATA)
    return SecurityReport(platform.repaired + user_data.repaired, platform.remaining + user_data.remaining)


def _repair(session: Session, database: Database) -> SecurityReport:
    _become_owner(session, database)
    # Held to the end of the transaction: no migrator changes under us what is compared here.
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _migrations.MIGRATION_LOCK})
    found = policy_differences(session, database)
    missing = sorted(each.table for each in found if each.problem is Problem.TABLE_MISSING)
    if missing:
        raise ConfigurationError(
            f"{database.value}: {', '.join(missing)} not found. Next step: run `usage-worker db init`."
        )
    repaired = tuple(each for each in found if each.ours)
    for difference in repaired:
        for statement in difference.remediation:
            session.execute(text(statement))
    return SecurityReport(repaired, tuple(policy_differences(session, database)))


def _become_owner(session: Session, database: Database) -> None:
    try:
        session.execute(text(f"SET LOCAL ROLE {policies.OWNER}"))
    except DBAPIError as error:
        if sqlstate.kind_of(error) is not sqlstate.FailureKind.CONFIGURATION:
            raise
        raise ConfigurationError(
            f"{database.prefix}_DATABASE_OWNER_URL: this login may not become {policies.OWNER}. "
            "Next step: run `usage-worker db init`."
        ) from error
