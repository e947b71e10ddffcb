"""The books of a shard with real servers around it: audits run in this process, as the auditor's login."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg

from producers import _stream
from producers._client import connect
from producers._config import EmitterConfig
from tests.integration.ingest_world import STREAM, World, event
from worker import db
from worker.audits import books
from worker.audits.findings import AuditReport, Finding, Outcome
from worker.entrypoints._clock import utcnow
from worker.models.vocabulary import Severity


def keys(shard: int) -> tuple[str, str]:
    """This function will return the keys of a shard's events and of its corrections."""
    return _stream.stream_key(STREAM, shard), _stream.correction_key(STREAM, shard)


class Books:
    """The books of a world: audits, and what somebody does behind their back."""

    def __init__(self, world: World, databases: Any, url: str) -> None:
        self.world = world
        self._superuser = databases.platform.url("superuser")
        self._client = connect(EmitterConfig(redis_url=url), for_emit=False)

    def audit(
        self, *, login: db.Login = db.Login.AUDIT, clock: Callable[[], datetime] = utcnow, **options: Any
    ) -> AuditReport:
        """This function will audit once."""
        return books.audit(
            lambda: db.platform_session(login=login),
            books.BookStreams(self._client, keys=keys),
            clock=clock,
            **options,
        )

    def found(self, **options: Any) -> dict[str, Finding]:
        """This function will audit once and return one finding of each check, those that inform left out."""
        report = self.audit(**options)
        assert {check.check_id for check in report.checks} == set(books.CHECK_IDS)
        findings = [one for one in report.findings if one.severity is not Severity.INFO]
        failed = {check.check_id for check in report.checks if check.outcome is Outcome.FAIL}
        assert {one.check_id for one in findings} <= failed
        return {one.check_id: one for one in findings}

    def use(self) -> None:
        """This function will drain a little of everything."""
        world, sent = self.world, event()
        world.add([sent, sent, {**sent, "cost_usd": "9"}, event(cost_usd="no"), event(cost_usd=None)])
        world.add(event(provider=None, model=None))
        world.add(event(input_tokens=None, output_tokens=None, tokens_used=7))
        world.add(b"{")
        world.add(event(clerk_id="user_late", user_id=None))
        unpriced = {"cost_usd": None, "input_tokens": None, "output_tokens": None}
        world.add(event(corrects=sent["event_id"], void=True, **unpriced), correction=True)
        world.drain()

    def stored_id(self, where: str = "corrects IS NULL AND cost_usd > 0") -> uuid.UUID:
        """This function will choose one event of the log that no correction stands on."""
        statement = (
            "SELECT id FROM platform_usage_logs AS log WHERE {where} AND NOT EXISTS"
            " (SELECT FROM platform_usage_logs WHERE corrects = log.id) ORDER BY id LIMIT 1"
        )
        found: uuid.UUID = self.world.rows(statement.replace("{where}", where))[0].id
        return found

    def sabotage(self, statement: str, **values: Any) -> list[Any]:
        """This function will do what only a superuser can, and return what the statement returned."""
        with psycopg.connect(self._superuser, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return [] if cursor.description is None else cursor.fetchall()

    def seals(self) -> list[Any]:
        """This function will return every seal, the oldest first."""
        return self.world.rows("SELECT * FROM usage_seals ORDER BY shard, cut_at")

    def audited(self, shard: int = 0) -> str:
        """This function will return up to which entry the books of a shard are proved."""
        rows = self.world.rows(
            "SELECT audited_entry_id FROM ingest_positions WHERE shard = :shard", shard=shard
        )
        return str(rows[0].audited_entry_id)
