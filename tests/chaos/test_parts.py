"""The suite's own parts: what it sends, what it plans, what its proxy does, how it measures."""

from __future__ import annotations

import datetime as dt
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from producers import _stream
from tests.chaos import failpoints
from tests.chaos.__main__ import stored_seeds
from tests.chaos.failpoints import Boundary, UnknownBoundary, When
from tests.chaos.ledger import Ledger, Read
from tests.chaos.monitor import Record
from tests.chaos.plan import Fault, Planned, Profile, make_plan
from tests.chaos.producer import _adjustment
from tests.chaos.proxy import Proxy
from tests.chaos.traffic import Kind, Traffic
from tests.chaos.world import Where

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def _traffic(seed: int = 7) -> Traffic:
    return Traffic(seed=seed, producer=0, events=20_000, frame=20, base=NOW)


class TestTraffic:
    def test_is_the_same_for_the_same_seed_and_another_for_another(self) -> None:
        first, again, other = _traffic(), _traffic(), _traffic(seed=8)
        assert list(first.steps()) == list(again.steps())
        assert first.event(17) == again.event(17)
        assert first.event(17) != other.event(17)

    def test_has_every_kind_and_no_event_twice(self) -> None:
        traffic = _traffic()
        steps = list(traffic.steps())
        assert {step.kind for step in steps} == set(Kind)
        ids = [event.event_id for step in steps for event in traffic.rows(step)]
        assert len(ids) == len(set(ids))

    def test_says_truly_what_the_contract_refuses(self) -> None:
        traffic = _traffic()
        reasons = set()
        for step in traffic.steps():
            if step.kind not in (Kind.BAD, Kind.MIXED):
                continue
            bad = traffic.bad(step)
            decoded = _stream.decode(bad.raw)
            # These two are judged by the arrival of the entry, and by its fields.
            expected = [None] if bad.reason in ("too_old", "in_future") else [bad.reason]
            if bad.reason != "malformed_entry":
                assert [one.reason for one in decoded] == expected
            reasons.add(bad.reason)
        assert len(reasons) >= 12

    def test_puts_a_bad_event_between_good_ones(self) -> None:
        traffic = _traffic()
        step = next(step for step in traffic.steps() if step.kind is Kind.MIXED)
        first, bad, last = _stream.decode(traffic.mixed(step))
        assert [one.event_id for one in (first, last)] == [event.event_id for event in traffic.rows(step)]
        assert bad.raw == traffic.bad(step).raw

    def test_corrects_only_what_the_contract_lets_it(self) -> None:
        traffic = _traffic()
        for step in traffic.steps():
            if step.kind in (Kind.VOID, Kind.CORRECTION):
                event = _adjustment(traffic.adjustment(step))
                (decoded,) = _stream.decode(_stream.encode(event), correction=True)
                assert decoded.reason is None


class TestPlan:
    def test_is_the_same_for_the_same_seed(self) -> None:
        one, again = (make_plan(seed=7, events=1000, profile=Profile.FULL) for _ in range(2))
        assert one == again
        assert one != make_plan(seed=8, events=1000, profile=Profile.FULL)

    def test_holds_what_a_million_events_have_to_survive(self) -> None:
        plan = make_plan(seed=7, events=1_000_000, profile=Profile.FULL)
        faults = [planned.fault for planned in plan.faults]
        promised = {
            "kill -9": (50, (Fault.CHILD_KILL, Fault.WORKER_KILL)),
            "Valkey": (20, (Fault.VALKEY_KILL, Fault.VALKEY_RESTART)),
            "Valkey by SIGKILL": (10, (Fault.VALKEY_KILL,)),
            "PostgreSQL": (20, (Fault.POSTGRES_IMMEDIATE, Fault.POSTGRES_FAST)),
            "PostgreSQL at once": (10, (Fault.POSTGRES_IMMEDIATE,)),
            "half-open": (5, (Fault.HALF_OPEN_STREAM, Fault.HALF_OPEN_TABLES)),
            "role change": (3, (Fault.ROLE_CHANGE,)),
            "out of memory": (2, (Fault.OUT_OF_MEMORY,)),
            "disk full": (2, (Fault.DISK_FULL_STREAM, Fault.DISK_FULL_TABLES)),
            "two beats": (2, (Fault.TWO_BEATS,)),
        }
        for what, (least, kinds) in promised.items():
            assert sum(fault in kinds for fault in faults) >= least, what
        assert plan.seconds < 12 * 60

    def test_of_the_matrix_has_every_boundary_with_every_action(self) -> None:
        plan = make_plan(seed=7, events=1000, profile=Profile.MATRIX)
        found = {(planned.boundary, planned.action) for planned in plan.faults}
        assert len(found) == len(failpoints.BOUNDARIES) * len(failpoints.Action)

    def test_leaves_out_what_is_not_asked_for(self) -> None:
        plan = make_plan(seed=7, events=1000, profile=Profile.SMALL, only=[Fault.ROLE_CHANGE])
        assert [planned.fault for planned in plan.faults] == [Fault.ROLE_CHANGE]


class TestFailpoints:
    def test_name_functions_that_exist(self) -> None:
        failpoints.check()

    def test_refuse_to_start_when_one_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gone = Boundary("gone", "worker.ingest.operations:no_such_function", When.AFTER)
        monkeypatch.setattr(failpoints, "BOUNDARIES", (gone,))
        with pytest.raises(UnknownBoundary, match="no_such_function"):
            failpoints.check()


class TestLedger:
    def test_keeps_what_was_tried_and_what_was_acknowledged(self, tmp_path: Path) -> None:
        ledger = Ledger(tmp_path / "ledger")
        ledger.tried(1)
        ledger.acknowledged(1, attempts=3)
        ledger.tried(2)
        ledger.close()
        read = Read(tmp_path / "ledger")
        assert (read.tried, read.acknowledged) == ({1, 2}, {1: 3})

    def test_ignores_a_line_that_was_cut_off(self, tmp_path: Path) -> None:
        (tmp_path / "ledger").write_bytes(b"T 1\nA 1 1\nT 2")
        assert Read(tmp_path / "ledger").tried == {1}


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that answers what it is sent; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    """A proxy before the echo."""
    made = Proxy(echo)
    yield made
    made.close()


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 5)
    connection.settimeout(0.3)
    return connection


def _ask(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    answer = b""
    while len(answer) < len(data):
        answer += connection.recv(65536)
    return answer


class TestProxy:
    def test_forwards_also_more_than_fits_into_its_buffers(self, proxy: Proxy) -> None:
        with _connect(proxy.port) as connection:
            connection.settimeout(20)
            data = bytes(range(256)) * 40_000
            sender = threading.Thread(target=connection.sendall, args=(data,))
            sender.start()
            answer = bytearray()
            while len(answer) < len(data):
                answer += connection.recv(1 << 20)
            sender.join(5)
            assert answer == data

    def test_silences_the_connections_of_now_and_keeps_them_open(self, proxy: Proxy) -> None:
        with _connect(proxy.port) as old:
            assert _ask(old, b"one") == b"one"
            assert proxy.silence() == 1
            old.sendall(b"two")
            with pytest.raises(TimeoutError):
                old.recv(10)
            with _connect(proxy.port) as new:
                assert _ask(new, b"three") == b"three"

    def test_loses_one_reply_although_the_request_arrived(self, proxy: Proxy) -> None:
        with _connect(proxy.port) as first, _connect(proxy.port) as second:
            assert _ask(second, b"zero") == b"zero"
            proxy.lose_reply()
            first.sendall(b"one")
            with pytest.raises(TimeoutError):
                first.recv(10)
            assert proxy.lost_all
            assert _ask(second, b"two") == b"two"

    def test_closes_the_other_end(self, proxy: Proxy) -> None:
        with _connect(proxy.port) as connection:
            assert _ask(connection, b"one") == b"one"
            proxy.close()
            assert connection.recv(10) == b""


class TestRecovery:
    """A fault that ended at second 10, when the stream's clock said 500."""

    def _record(self) -> Record:
        return Record(Planned(0, Fault.VALKEY_KILL, 0), began=9, ended=10, ended_ms=500)

    def test_is_when_what_came_after_the_fault_was_processed(self) -> None:
        record = self._record()
        record.look([Where("s", tail="600-0", position="400-0")], now=11)
        record.look([Where("s", tail="900-0", position="600-0")], now=12)
        record.look([Where("s", tail="990-0", position="600-0")], now=14)
        assert record.recovery_seconds == 2

    def test_is_not_taken_from_a_stream_that_was_only_quiet(self) -> None:
        record = self._record()
        record.look([Where("s", tail="400-0", position="400-0")], now=10.2)
        record.look([Where("s", tail="600-0", position="400-0")], now=11)
        record.look([Where("s", tail="600-0", position="400-0")], now=20)
        assert record.recovery_seconds is None
        record.look([Where("s", tail="600-0", position="600-0")], now=33)
        assert record.recovery_seconds == 23

    def test_is_at_once_where_nothing_waits(self) -> None:
        record = self._record()
        record.look([Where("s", tail="400-0", position="400-0")], now=10.2)
        record.look([Where("s", tail="400-0", position="400-0")], now=13.2)
        assert record.recovery_seconds == pytest.approx(0.2)


class TestSeeds:
    def test_can_be_read(self) -> None:
        assert 7 in stored_seeds()
