"""The older names: they work, and each says what to use instead."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from tests.integration.db.tenants import Bind
from worker import db
from worker.database_url import Database
from worker.db import legacy

NAME = text("SELECT current_database()")


class TestLegacyNames:
    @pytest.mark.parametrize("name", ["get_db_session", "SessionLocal"])
    def test_open_a_session_on_the_platform(self, name: str, bind: Bind) -> None:
        bound = bind("worker")
        function: Callable[[], object] = getattr(legacy, name)
        with pytest.warns(
            DeprecationWarning, match=f"{name} is deprecated: use worker.db.platform_session"
        ) as said:
            session = function()
        assert said[0].filename == __file__, "the warning points at the caller"
        assert session.scalar(NAME) == bound.platform.url.database  # type: ignore[attr-defined]  # a Session
        session.close()  # type: ignore[attr-defined]  # a Session

    def test_get_db_is_a_dependency(self, bind: Bind) -> None:
        bound = bind("worker")
        generator = legacy.get_db()
        with pytest.warns(DeprecationWarning, match="use worker.db.get_platform_db"):
            session = next(generator)
        assert session.scalar(NAME) == bound.platform.url.database
        generator.close()

    def test_engine_is_the_platforms(self, bind: Bind) -> None:
        bind("worker")
        with pytest.warns(DeprecationWarning, match="use worker.db.engine_for"):
            assert legacy.engine() is db.engine_for(Database.PLATFORM)

    def test_init_and_close(self, bind: Bind) -> None:
        bind("worker")
        with pytest.warns(DeprecationWarning, match="use worker.db.init_databases"):
            legacy.init_database()
        engine = db.engine_for(Database.PLATFORM)
        with pytest.warns(DeprecationWarning, match="use worker.db.close_databases"):
            legacy.close_database()
        assert db.engine_for(Database.PLATFORM) is not engine
