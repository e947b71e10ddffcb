"""`db adopt` stamps a database that is what the migrations build, and says what is different in any other."""

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.databases import Clone, Databases
from worker.database_url import Database
from worker.db import _adopt, _migrations
from worker.errors import ConfigurationError
from worker.models import policies
from worker.settings import Settings


def by_hand(clone: Clone, *statements: str) -> None:
    """This function will change a database the way one without migrations was changed."""
    with psycopg.connect(clone.url("owner")) as connection:
        connection.execute("SET ROLE usage_owner")
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def unmanaged(databases: Databases) -> Databases:
    """Databases with all our tables that no migration has ever seen."""
    for database, clone in (
        (Database.PLATFORM, databases.platform),
        (Database.USER_DATA, databases.user_data),
    ):
        drop = sql.SQL("DROP TABLE {}").format(sql.Identifier(policies.VERSION_TABLES[database]))
        by_hand(clone, drop.as_string())
    return databases


class TestAdopt:
    @pytest.mark.parametrize("database", list(Database))
    def test_stamps_what_is_equal(self, bound: Settings, unmanaged: Databases, database: Database) -> None:
        assert _adopt.adopt(database, dry_run=True) == _adopt.Adoption(database, (), None)
        assert _migrations.heads(bound.database(database)).current is None
        adoption = _adopt.adopt(database)
        assert adoption.stamped == _migrations.head_of(database)
        for url in (bound.database(database).url, bound.database(database).audit_url):
            assert _migrations.heads(bound.database(database), url=url).at_head
        _migrations.migrate(bound.database(database))

    def test_lists_every_difference_and_changes_nothing(self, bound: Settings, unmanaged: Databases) -> None:
        by_hand(
            unmanaged.user_data,
            "DROP TABLE user_personas",
            "ALTER TABLE user_profiles ALTER business_name TYPE varchar(10)",
            "ALTER TABLE user_projects NO FORCE ROW LEVEL SECURITY",
            "DROP INDEX ix_user_content_assets_user_id_project_id",
            "ALTER TABLE user_profiles DROP CONSTRAINT ck_user_profiles_content_goals_object",
            "ALTER TABLE user_profiles ADD COLUMN nickname text",
        )
        adoption = _adopt.adopt(Database.USER_DATA)
        assert adoption.stamped is None
        assert [line.partition(":")[0] for line in adoption.differences] == [
            "index user_content_assets.ix_user_content_assets_user_id_project_id",
            "table user_personas",
            "column user_profiles.business_name",
            "column user_profiles.nickname",
            "constraint user_profiles.ck_user_profiles_content_goals_object",
            "user_projects",
        ]
        assert "it is character varying(10), it should be character varying(255)" in adoption.differences[2]
        assert "ALTER TABLE user_projects FORCE ROW LEVEL SECURITY" in adoption.differences[-1]
        assert _migrations.heads(bound.user_data).current is None

    def test_leaves_out_tables_that_are_not_ours(self, bound: Settings, unmanaged: Databases) -> None:
        by_hand(unmanaged.user_data, "CREATE TABLE theirs (a int)")
        assert _adopt.adopt(Database.USER_DATA).stamped is not None

    def test_leaves_no_scratch_schema(self, bound: Settings, unmanaged: Databases) -> None:
        _adopt.adopt(Database.PLATFORM)
        with psycopg.connect(unmanaged.platform.url("owner")) as connection:
            found = connection.execute("SELECT to_regnamespace(%s)", [_adopt.SCRATCH_SCHEMA]).fetchone()
        assert found == (None,)

    def test_refuses_a_database_that_is_under_migrations(self, bound: Settings) -> None:
        with pytest.raises(ConfigurationError, match="already"):
            _adopt.adopt(Database.PLATFORM)

    def test_says_what_the_scratch_schema_needs(self, bound: Settings, unmanaged: Databases) -> None:
        name = unmanaged.platform.name
        with psycopg.connect(unmanaged.platform.url("superuser"), autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO postgres").format(sql.Identifier(name)))
        with pytest.raises(ConfigurationError, match=f'GRANT CREATE ON DATABASE "{name}" TO "dev_owner"'):
            _adopt.adopt(Database.PLATFORM)
