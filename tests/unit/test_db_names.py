"""The names and shapes that existing applications call: they may grow, and never change."""

import inspect
import subprocess
import sys

import pytest

from worker import db
from worker.db import legacy

SIGNATURES = {
    "get_platform_db": "() -> Generator[Session, None, None]",
    "get_user_data_db": "() -> Generator[Session, None, None]",
    "set_user_context": "(user_id: UUID | str, session: Session) -> None",
    "test_connections": "() -> dict[str, ConnectionReport]",
    "get_database_info": "() -> dict[str, DatabaseInfo]",
    "setup_row_level_security": "() -> SecurityReport",
    "init_databases": "() -> None",
    "close_databases": "() -> None",
}


class TestNames:
    @pytest.mark.parametrize("name", SIGNATURES)
    def test_are_called_as_ever(self, name: str) -> None:
        assert name in db.__all__
        assert str(inspect.signature(getattr(db, name))).replace("'", "") == SIGNATURES[name]
        assert f"`{name}(" in (db.__doc__ or "")

    @pytest.mark.parametrize(
        "name", ["get_db_session", "get_db", "init_database", "close_database", "SessionLocal", "engine"]
    )
    def test_of_before_need_no_arguments(self, name: str) -> None:
        assert not inspect.signature(getattr(legacy, name)).parameters

    def test_every_exported_name_exists(self) -> None:
        assert sorted(db.__all__) == db.__all__
        assert all(hasattr(db, name) for name in db.__all__)

    def test_shapes_have_the_documented_keys(self) -> None:
        assert db.ConnectionReport.__required_keys__ == {
            "url",
            "status",
            "latency_ms",
            "error",
            "pool_mode",
            "direct",
        }
        assert db.DatabaseInfo.__required_keys__ >= {
            "url",
            "host",
            "port",
            "database",
            "login",
            "pool_mode",
            "server_version",
            "size_bytes",
            "max_connections",
            "current_revision",
            "head_revision",
            "at_head",
            "pool",
        }


class TestImport:
    def test_opens_nothing_and_reads_no_environment(self) -> None:
        program = (
            "import sys, worker.db; from worker.db import _engines\n"
            "assert _engines.opened_engines() == {} and _engines._process.settings is None\n"
            "assert 'fastapi' not in sys.modules and 'celery' not in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", program], env={}, check=True, timeout=60)
