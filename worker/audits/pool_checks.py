"""What measured connections mean: thresholds and arithmetic, without a database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from worker.audits.findings import CheckResult, Finding, answer, inconclusive, skipped
from worker.models.vocabulary import Severity


@dataclass(frozen=True, slots=True)
class Threshold:
    """From `warn` on a value is a medium finding, from `critical` on the worst that the check knows."""

    warn: float
    critical: float

    def severity_of(self, value: float, *, worst: Severity = Severity.HIGH) -> Severity | None:
        """This method will give the severity of `value`, or None below `warn`."""
        if value >= self.critical:
            return worst
        return Severity.MEDIUM if value >= self.warn else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Shares are of 1, times are seconds, latencies are milliseconds."""

    saturation_share: Threshold = Threshold(0.8, 1.0)
    checkout_wait_ms: Threshold = Threshold(100, 1000)
    ceiling_share: Threshold = Threshold(0.8, 1.000001)
    live_use_share: Threshold = Threshold(0.75, 0.9)
    idle_in_transaction_seconds: Threshold = Threshold(60, 300)
    active_query_seconds: Threshold = Threshold(60, 300)
    transaction_seconds: Threshold = Threshold(900, 3600)
    lock_wait_seconds: Threshold = Threshold(10, 60)
    latency_ms: Threshold = Threshold(50, 500)


DEFAULT_THRESHOLDS: Final = Thresholds()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPool:
    """The pool of the process that runs the audit, as it counted itself.

    `overflow` is the number of connections beyond `size`; `wait_ms` the 95th percentile of the time that a
    checkout waited, None where nobody measures it; `timeout_count` the checkouts that gave up.
    """

    size: int
    max_overflow: int
    checked_out: int
    overflow: int = 0
    wait_ms: float | None = None
    timeout_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many connections everything that is configured may open to this server.

    Each process may open `pools` (engines to this server) times `pool_size + max_overflow`; `other` counts
    what else connects: beat, Flower, migrations, monitoring, people.
    """

    processes: int
    pool_size: int
    max_overflow: int
    pools: int = 1
    other: int = 5

    @property
    def ceiling(self) -> int:
        """This property will be the largest number of connections at the same time."""
        return self.processes * self.pools * (self.pool_size + self.max_overflow) + self.other


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What the server said about itself and about the other sessions of this database.

    `database_limit` is -1 where the database has none. `sees_all` is false where the login may not read what
    other roles do (pg_monitor).
    """

    max_connections: int
    reserved_connections: int
    database_limit: int
    client_count: int
    sees_all: bool
    idle_in_transaction: Sequence[Session]
    active: Sequence[Session]
    transactions: Sequence[Session]
    lock_waits: Sequence[Session]
    read_only: bool
    in_recovery: bool

    @property
    def available(self) -> int:
        """This property will be how many connections an ordinary role can have here."""
        free = self.max_connections - self.reserved_connections
        return free if self.database_limit < 0 else min(free, self.database_limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session, its application without process numbers, and for how many seconds it is in its state."""

    pid: int
    application: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooler:
    """What gives a pooler away: the process that the client was told of is not the one that answers."""

    told_pid: int
    answering_pid: int
    moved: bool | None
    """Whether one client was answered by several server processes; None where that was not tried."""

    @property
    def present(self) -> bool:
        """This property will be true behind a pooler."""
        return self.told_pid != self.answering_pid


def saturation(database: str, pool: ProcessPool | None, limits: Thresholds) -> CheckResult:
    """C01: the process's own pool is used up."""
    check_id = "pool.saturation"
    if pool is None:
        return skipped(check_id, "no pool of this process was given")
    share = pool.checked_out / max(1, pool.size + pool.max_overflow)
    text = f"{pool.checked_out} of {pool.size + pool.max_overflow} connections of this process are in use"
    return _judged(
        check_id, database, "this process", limits.saturation_share.severity_of(share), text, _POOL
    )


def checkout_wait(database: str, pool: ProcessPool | None, limits: Thresholds) -> CheckResult:
    """C02: getting a connection from the pool takes time."""
    check_id = "pool.checkout_wait"
    if pool is None or pool.wait_ms is None:
        return skipped(check_id, "this process does not measure how long a checkout waits")
    text = f"a checkout waits {pool.wait_ms:.0f} ms (95th percentile)"
    return _judged(
        check_id, database, "this process", limits.checkout_wait_ms.severity_of(pool.wait_ms), text, _POOL
    )


def timeouts(database: str, pool: ProcessPool | None) -> CheckResult:
    """C03: checkouts gave up."""
    check_id = "pool.timeouts"
    if pool is None:
        return skipped(check_id, "no pool of this process was given")
    severity = Severity.HIGH if pool.timeout_count else None
    text = f"{pool.timeout_count} checkouts of this process gave up waiting"
    return _judged(check_id, database, "this process", severity, text, _POOL)


def ceiling(database: str, fleet: Fleet | None, server: Server, limits: Thresholds) -> CheckResult:
    """B01: everything together may open more connections than there are: an outage that waits for load."""
    check_id = "pool.ceiling"
    if fleet is None:
        return inconclusive(
            check_id, "needed: processes x pools x (pool size + overflow) + others; not given"
        )
    share = fleet.ceiling / max(1, server.available)
    severity = limits.ceiling_share.severity_of(share, worst=Severity.CRITICAL)
    text = f"the configured processes may open {fleet.ceiling} connections, {server.available} are available"
    return _judged(
        check_id, database, "fleet", severity, text, "lower USAGE_WORKER_POOL_SIZE or the concurrency"
    )


def live_use(database: str, server: Server, limits: Thresholds) -> CheckResult:
    """B03: the server's connections are nearly used up now."""
    share = server.client_count / max(1, server.available)
    severity = limits.live_use_share.severity_of(share, worst=Severity.CRITICAL)
    text = f"{server.client_count} of {server.available} connections are open"
    return _judged("pool.live_use", database, "server", severity, text, "close what idles, or pool")


def idle_in_transaction(database: str, server: Server, limits: Thresholds) -> CheckResult:
    """D01: a session holds a transaction open and does nothing."""
    return _sessions(
        "pool.idle_in_transaction",
        database,
        server,
        server.idle_in_transaction,
        limits.idle_in_transaction_seconds,
        "idle in a transaction",
    )


def long_active_query(database: str, server: Server, limits: Thresholds) -> CheckResult:
    """D02: one statement runs for long."""
    return _sessions(
        "pool.long_active_query",
        database,
        server,
        server.active,
        limits.active_query_seconds,
        "in one statement",
    )


def long_transaction(database: str, server: Server, limits: Thresholds) -> CheckResult:
    """D03: one transaction is open for long, so nothing that was deleted since can be cleaned up."""
    return _sessions(
        "pool.long_transaction",
        database,
        server,
        server.transactions,
        limits.transaction_seconds,
        "in one transaction",
    )


def lock_waits(database: str, server: Server, limits: Thresholds) -> CheckResult:
    """D04: sessions wait for locks that others hold."""
    return _sessions(
        "pool.lock_waits", database, server, server.lock_waits, limits.lock_wait_seconds, "waiting for a lock"
    )


def read_only(database: str, server: Server) -> CheckResult:
    """X09: writes go to a server that takes none: a standby, or one whose disk has filled."""
    severity = Severity.CRITICAL if server.in_recovery or server.read_only else None
    text = "the server is in recovery" if server.in_recovery else "transactions are read-only by default"
    return _judged("pool.read_only", database, "server", severity, text, "point the URL at the primary")


def pooler_detected(database: str, pooler: Pooler, declared_mode: str) -> CheckResult:
    """X01: a pooler stands between, and it may not be in the mode that was declared."""
    check_id = "pool.pooler_detected"
    if not pooler.present:
        return answer(check_id, [])
    if declared_mode == "session" and pooler.moved:
        text = (
            "one client is answered by several server processes: transaction pooling, but session is declared"
        )
        return _judged(
            check_id,
            database,
            "pooler",
            Severity.HIGH,
            text,
            "set DB_POOL_MODE=transaction for this database",
        )
    text = f"a pooler stands between; declared is {declared_mode} mode"
    found = _finding(check_id, database, "pooler", Severity.INFO, text, "")
    if declared_mode == "session" and pooler.moved is None:
        return inconclusive(check_id, "the pooler's mode was not tried", [found])
    return answer(check_id, [found])


def latency(database: str, milliseconds: float, limits: Thresholds) -> CheckResult:
    """C17: the server is far away or slow to answer."""
    severity = limits.latency_ms.severity_of(milliseconds)
    text = f"the fastest of several round trips took {milliseconds:.1f} ms"
    return _judged("pool.latency", database, "server", severity, text, "move worker and database together")


def _sessions(
    check_id: str,
    database: str,
    server: Server,
    sessions: Sequence[Session],
    threshold: Threshold,
    what: str,
) -> CheckResult:
    found = [
        _finding(
            check_id,
            database,
            one.application or "(no application_name)",
            severity,
            f"{sum(other.application == one.application for other in sessions)} sessions; the longest, pid"
            f" {one.pid}, is {what} for {one.seconds:.0f} s",
            f"SELECT pg_terminate_backend({one.pid});",
        )
        for one in _longest_of_each(sessions)
        if (severity := threshold.severity_of(one.seconds)) is not None
    ]
    if not server.sees_all:
        return inconclusive(check_id, "the login is not in pg_monitor: it sees its own sessions only", found)
    return answer(check_id, found)


def _longest_of_each(sessions: Sequence[Session]) -> list[Session]:
    longest: dict[str, Session] = {}
    for one in sessions:
        if one.application not in longest or one.seconds > longest[one.application].seconds:
            longest[one.application] = one
    return list(longest.values())


_POOL: Final = "raise DB_POOL_SIZE, or hold connections for shorter"


def _judged(
    check_id: str, database: str, label: str, severity: Severity | None, text: str, remediation: str
) -> CheckResult:
    if severity is None:
        return answer(check_id, [])
    return answer(check_id, [_finding(check_id, database, label, severity, text, remediation)])


def _finding(
    check_id: str, database: str, label: str, severity: Severity, text: str, remediation: str
) -> Finding:
    return Finding(
        check_id=check_id,
        severity=severity,
        database=database,
        object=label,
        message=text,
        remediation=remediation,
    )
