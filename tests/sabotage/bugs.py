"""The bugs: what is changed where, which promise that breaks, and the part of the suite that has to turn red.

`old` must stand exactly once in its file, so a bug whose place has changed is an error and not a bug missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DELIVERY: Final = "tests/integration/test_ingest_delivery.py"
ANSWERS: Final = "tests/integration/test_ingest_answers.py"
SIMULATION: Final = "tests/simulation"


@dataclass(frozen=True, slots=True)
class Change:
    """One replacement in one file."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Bug:
    """A planted bug; `breaks` says which promise, `tests` which part of the suite must notice."""

    name: str
    breaks: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]


BUGS: Final = (
    Bug(
        "acknowledge before commit",
        "I1 no loss: nothing is acknowledged before its outcome is committed",
        (
            Change(
                "worker/ingest/core.py",
                "        yield Start(key, batch, self._lease)\n",
                "        yield Advance(key, entries[-1][0].decode(), None, EntryId(0, 0))\n"
                "        yield Start(key, batch, self._lease)\n",
            ),
        ),
        (DELIVERY, SIMULATION),
    ),
    Bug(
        "no look for known ids",
        "I3 no double: an id that is known is answered, not inserted again",
        (
            Change("worker/ingest/operations.py", "        ON CONFLICT (id) DO NOTHING\n", ""),
            Change(
                "worker/ingest/plain_rows.py",
                "        known = _known(cursor) if staged.known is None else staged.known\n",
                "        known: list[tuple[str, bool]] = []\n",
            ),
        ),
        (ANSWERS, DELIVERY),
    ),
    Bug(
        "a reused id with other content is a duplicate",
        "I1 no loss: the second event's money is kept as a conflict",
        (
            Change(
                "worker/ingest/plain_rows.py",
                "    if not all(same for _, same in known):\n",
                "    if not known and plain.clash:\n",
            ),
        ),
        (ANSWERS, "tests/integration/test_ingest_plain.py"),
    ),
    Bug(
        "roll-ups not tied to new rows",
        "I5 roll-ups = aggregation of the log",
        (
            Change(
                "worker/ingest/plain_rows.py",
                "        plain.without(known_ids)\n",
                "        pass\n",
            ),
        ),
        (DELIVERY, "tests/integration/test_ingest_plain.py"),
    ),
    Bug(
        "MAXLEN on the stream",
        "I1 no loss: nobody trims what is unread",
        (
            Change(
                "producers/_routes.py",
                r'b"*5\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n',
                r'b"*7\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$6\r\nMAXLEN\r\n$4\r\n1000\r\n$1\r\n*\r\n',
            ),
        ),
        ("tests/integration/test_emitter.py",),
    ),
    Bug(
        "consumer group at $",
        "I1 no loss: what was added before the group existed is read",
        (
            Change(
                "worker/valkey.py", 'key, self.group, id="0", mkstream', 'key, self.group, id="$", mkstream'
            ),
        ),
        (DELIVERY,),
    ),
    Bug(
        "new id in every retry",
        "I3 no double: a repetition is the same event",
        (
            Change(
                "producers/_emitter.py",
                "        self._deliver_one(encoded(event))\n",
                '        self._deliver_one(encoded(event.model_copy(update={"event_id": uuid4()})))\n',
            ),
            Change(
                "producers/_emitter.py",
                "from uuid import UUID\n",
                "from uuid import UUID, uuid4\n",
            ),
        ),
        ("tests/integration/test_emitter.py", "tests/integration/test_emitter_faults.py"),
    ),
    Bug(
        "cost as a float",
        "I4 money exact, to the twelfth place",
        (
            Change(
                "producers/_fields.py",
                "    quantised = cost.quantize(_STEP, context=_MONEY)\n",
                "    quantised = Decimal(float(cost)).quantize(_STEP, context=_MONEY)\n",
            ),
        ),
        ("tests/unit/producers", "tests/unit/ingest"),
    ),
    Bug(
        "decoded replies",
        "I1 no loss: an entry that is not UTF-8 is put aside with its bytes",
        (
            Change(
                "worker/valkey.py",
                "        client.set_retry(Retry(NoBackoff(), 0))\n",
                "        client.set_retry(Retry(NoBackoff(), 0))\n"
                "        for each in nodes(client):\n"
                '            each.connection_pool.connection_kwargs["decode_responses"] = True\n',
            ),
        ),
        (ANSWERS, "tests/integration/test_valkey.py"),
    ),
    Bug(
        "no bisection",
        "I1 no loss: one bad row does not take its neighbours along",
        (
            Change(
                "worker/ingest/operations.py",
                "        if len(events) == 1:\n",
                "        for event in events[1:]:\n"
                '            event.refuse("refused_by_database", "with its neighbours")\n'
                "        if events:\n",
            ),
        ),
        ("tests/integration/test_ingest_poison.py",),
    ),
    Bug(
        "the epoch is not checked",
        "one writer per shard: who lost the lease commits nothing",
        (
            Change(
                "worker/ingest/operations.py",
                "     WHERE shard = :shard AND epoch = :epoch\n       FOR UPDATE\n",
                "     WHERE shard = :shard AND (epoch = :epoch OR epoch > 0)\n       FOR UPDATE\n",
            ),
        ),
        ("tests/integration/test_ingest_lease.py",),
    ),
    Bug(
        "a batch that was read ahead is kept when the one before it failed",
        "I1 no loss: the position never passes an entry that is not processed",
        (
            Change(
                "worker/ingest/core.py",
                "            cursor = min(self._position(key), state.last_delivered)\n",
                "            cursor = self._cursors.get(key, state.last_delivered)\n",
            ),
        ),
        (DELIVERY, SIMULATION),
    ),
    Bug(
        "a void forgets the cost",
        "I4 money exact: a void takes all that is left of its target",
        (
            Change(
                "worker/ingest/corrections.py",
                "        cost = None if target.cost_left is None else -target.cost_left\n",
                "        cost = None\n",
            ),
        ),
        ("tests/integration/test_ingest_corrections.py", "tests/unit/ingest"),
    ),
    Bug(
        "trimming does not wait for the books",
        "I1 no loss: what is trimmed was proved before",
        (
            Change(
                "worker/ingest/retention.py",
                "    passed.append((row.audited(correction=correction) if row else _ZERO, AUDIT))\n",
                "",
            ),
        ),
        ("tests/integration/test_retention.py",),
    ),
    Bug(
        "poison is never parked",
        "no drain is blocked by an entry that kills its process",
        (
            Change(
                "worker/ingest/core.py",
                "            parked = deliveries + CAREFUL_AFTER > self._limits.poison_deliveries\n",
                "            parked = False\n",
            ),
        ),
        ("tests/integration/test_ingest_careful.py",),
    ),
    Bug(
        "a dead letter without its bytes",
        "I10 dead letters: bytes as received, and replay moves each into the log once",
        (
            Change(
                "worker/ingest/operations.py",
                '            "raw": event.raw,\n',
                '            "raw": event.raw.strip(),\n',
            ),
        ),
        (ANSWERS, "tests/integration/test_dead_letters.py"),
    ),
    Bug(
        "two beats do everything twice",
        "I12 periodic jobs: one effective run per job and window",
        (
            Change(
                "worker/jobs/operations.py",
                "     WHERE run.finished_at IS NULL\n"
                "       AND run.attempts < :most_attempts\n"
                "       AND (:redelivered OR run.started_at < :dead_before)\n",
                "     WHERE :most_attempts > 0 AND (:redelivered OR :dead_before IS NOT NULL)\n",
            ),
        ),
        ("tests/integration/test_jobs.py",),
    ),
    Bug(
        "a group that went back is moved on",
        "I1 no loss: a stream that went back in time is read again",
        (
            Change(
                "worker/valkey.py",
                "        if not standing or self._state_of(groups).last_delivered < expected:\n",
                "        if not standing:\n",
            ),
        ),
        ("tests/integration/test_valkey.py", DELIVERY),
    ),
    Bug(
        "a database that went back is not noticed",
        "I1 no loss: after a restore reading goes on from the restored position",
        (
            Change(
                "worker/ingest/core.py",
                "            if before != [self._position(key) for key in self._keys]:\n",
                "            if not before:\n",
            ),
        ),
        (SIMULATION,),
    ),
    Bug(
        "an unknown price is free",
        "I4 money exact: what nobody knows is NULL, and never 0",
        (
            Change(
                "worker/pricing/rules.py",
                '    return CostChoice(None, "unpriced")\n',
                '    return CostChoice(Decimal(0), "computed")\n',
            ),
        ),
        ("tests/unit/pricing", "tests/unit/ingest/test_plain_equals_contract.py"),
    ),
    Bug(
        "the spool forgets before the stream has answered",
        "P1 no loss: what emit returned for is one row",
        (
            Change(
                "producers/_spool_replay.py",
                "            refused = self._send(stretch)\n",
                "            segment.advance(stretch.end)\n            refused = self._send(stretch)\n",
            ),
        ),
        ("tests/integration/test_spool.py",),
    ),
)
