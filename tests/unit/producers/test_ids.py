"""Ids: ordered by time, different in every thread and child, the same for the same key."""

import threading
from uuid import NAMESPACE_DNS, UUID, uuid5

from producers._ids import keyed_event_id, new_event_id, void_event_id

USER = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"


class TestNewEventId:
    def test_is_a_uuid_of_version_7(self) -> None:
        identity = new_event_id()
        assert (identity.version, identity.variant) == (7, "specified in RFC 4122")

    def test_begins_with_the_time(self) -> None:
        identity = new_event_id(at_ns=1_769_850_000_123_999_999)
        assert identity.int >> 80 == 1_769_850_000_123
        assert identity.int >> 64 & 0xFFF == 0xFFF

    def test_later_ones_sort_later(self) -> None:
        made = [new_event_id() for _ in range(2000)]
        # Within a quarter of a microsecond the order is left to chance.
        times = [identity.int >> 64 for identity in made]
        assert times == sorted(times)

    def test_are_unique_across_threads(self) -> None:
        made: list[UUID] = []
        threads = [
            threading.Thread(target=lambda: made.extend([new_event_id() for _ in range(2000)]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(made)) == 8000


class TestKeyedEventId:
    def test_is_the_documented_one(self) -> None:
        namespace = uuid5(NAMESPACE_DNS, "usage-worker")
        assert keyed_event_id(USER, "chatcmpl-9x") == uuid5(namespace, f"{USER}|chatcmpl-9x")
        # As any other language has to compute it.
        assert str(namespace) == "c2cce1b7-d584-5e34-8fb0-123f0b8de01f"

    def test_differs_by_user_and_key(self) -> None:
        assert len({keyed_event_id(user, key) for user in ("a", "b") for key in ("1", "2")}) == 4


class TestVoidEventId:
    def test_there_is_one_for_each_target(self) -> None:
        target = UUID(USER)
        assert void_event_id(target) == void_event_id(target) != target
        assert void_event_id(target) != keyed_event_id("void", USER)
