"""The tenant's context: before every query, in every transaction, on one Session, and nowhere else."""

import uuid
from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import PendingRollbackError, ProgrammingError
from sqlalchemy.orm import Session, sessionmaker

from tests.fixtures.databases import Databases
from tests.integration.db.tenants import Bind, Tenants
from worker import db
from worker.database_url import Database
from worker.errors import ConfigurationError
from worker.models.platform import User
from worker.models.user_data import UserProfile

MISSING = r"A user-data session was used without a user: call set_user_context\(user_id, session\) first\."
ANOTHER = r"This Session belongs to another user, whose objects it still holds: open a new Session\."

CONTEXT = text("SELECT current_user, current_setting('app.current_user_id', true)")


def context_of(session: Session) -> tuple[str, str | None]:
    row = session.execute(CONTEXT).one()
    return row[0], row[1]


def names(session: Session) -> list[str | None]:
    return list(session.scalars(select(UserProfile.business_name)))


QUERIES: dict[str, Callable[[Session], object]] = {
    "select of a model": lambda session: session.scalars(select(UserProfile)).all(),
    "get by id": lambda session: session.get(UserProfile, uuid.uuid4()),
    "old style query": lambda session: session.query(UserProfile).first(),
    "text": lambda session: session.execute(text("SELECT 1")),
    "Core insert": lambda session: session.execute(insert(UserProfile).values(user_id=uuid.uuid4())),
    "Core select": lambda session: session.scalar(select(func.now())),
    "connection": lambda session: session.connection(),
    "bulk insert": lambda session: session.bulk_save_objects([UserProfile(user_id=uuid.uuid4())]),
    "query in a savepoint": lambda session: session.begin_nested().session.execute(text("SELECT 1")),
}


class TestUserContextMissing:
    @pytest.mark.parametrize("query", QUERIES)
    def test_is_raised_before(self, query: str, bind: Bind) -> None:
        bind()
        with db.user_data_session() as session:
            with pytest.raises(db.UserContextMissing, match=MISSING):
                QUERIES[query](session)
            # An application that swallows the first error gets no further with the second.
            with pytest.raises((db.UserContextMissing, PendingRollbackError)):
                QUERIES[query](session)
            session.rollback()

    def test_is_raised_before_a_flush(self, bind: Bind) -> None:
        bind()
        with db.user_data_session() as session:
            for _ in range(2):
                session.add(UserProfile(user_id=uuid.uuid4()))
                with pytest.raises(db.UserContextMissing):
                    session.flush()
                session.rollback()

    def test_is_raised_by_the_dependency_too(self, bind: Bind) -> None:
        bind()
        dependency = db.get_user_data_db()
        session = next(dependency)
        with pytest.raises(db.UserContextMissing):
            session.execute(text("SELECT 1"))
        dependency.close()

    def test_no_connection_was_taken(self, bind: Bind) -> None:
        bind()
        with db.user_data_session() as session, pytest.raises(db.UserContextMissing):
            session.execute(text("SELECT 1"))
        assert db.engine_for(Database.USER_DATA).pool.checkedin() == 0  # type: ignore[attr-defined]  # a queue

    def test_is_not_raised_for_the_system(self, bind: Bind, tenants: Tenants) -> None:
        bind("worker")
        with db.user_data_session(system=True) as session:
            assert sorted(filter(None, names(session))) == sorted([str(tenants.one), str(tenants.two)])
            assert context_of(session)[0] == "dev_worker"

    def test_the_system_sees_only_what_its_login_may(self, bind: Bind, tenants: Tenants) -> None:
        bind("app")
        with pytest.raises(ProgrammingError), db.user_data_session(system=True) as session:
            names(session)


@pytest.mark.parametrize("login", ["app", "worker"])
class TestSetUserContext:
    def test_confines_to_the_users_rows(self, login: str, bind: Bind, tenants: Tenants) -> None:
        bind(login)
        for user in (tenants.one, tenants.two):
            with db.user_data_session() as session:
                db.set_user_context(user, session)
                assert names(session) == [str(user)]
                assert context_of(session) == ("authenticated_users", str(user))

    def test_takes_text(self, login: str, bind: Bind, tenants: Tenants) -> None:
        bind(login)
        with db.user_data_session(user_id=str(tenants.one).upper()) as session:
            assert names(session) == [str(tenants.one)]

    def test_holds_after_each_commit_and_rollback(self, login: str, bind: Bind, tenants: Tenants) -> None:
        bind(login)
        with db.user_data_session() as session:
            db.set_user_context(tenants.one, session)
            for turn in range(3):
                session.add(UserProfile(user_id=tenants.one, business_name=str(turn)))
                session.commit()
                assert context_of(session) == ("authenticated_users", str(tenants.one))
                session.rollback()
                assert context_of(session) == ("authenticated_users", str(tenants.one))
            assert len(names(session)) == 4

    def test_is_gone_in_the_next_transaction_of_the_pooled_connection(
        self, login: str, bind: Bind, tenants: Tenants
    ) -> None:
        bind(login, DB_POOL_SIZE=1, DB_MAX_OVERFLOW=0)
        for leave in (Session.commit, Session.rollback, Session.close):
            with db.user_data_session() as session:
                db.set_user_context(tenants.one, session)
                backend = session.scalar(text("SELECT pg_backend_pid()"))
                leave(session)
            with db.user_data_session(system=True) as session:
                assert session.scalar(text("SELECT pg_backend_pid()")) == backend
                role, user = context_of(session)
                assert (role, user or "") == (f"dev_{login}", "")

    def test_is_refused_for_another_user(self, login: str, bind: Bind, tenants: Tenants) -> None:
        bind(login)
        with db.user_data_session(user_id=tenants.one) as session:
            held = session.scalars(select(UserProfile)).all()
            session.commit()
            with pytest.raises(db.UserContextRefused, match=ANOTHER):
                db.set_user_context(tenants.two, session)
            db.set_user_context(tenants.one, session)
            assert names(session) == [str(tenants.one)]
            assert len(held) == 1

    def test_survives_savepoints(self, login: str, bind: Bind, tenants: Tenants) -> None:
        bind(login)
        with db.user_data_session(user_id=tenants.one) as session:
            for end in ("commit", "rollback"):
                savepoint = session.begin_nested()
                assert context_of(session)[0] == "authenticated_users"
                getattr(savepoint, end)()
                assert context_of(session) == ("authenticated_users", str(tenants.one))

    def test_writes_across_tenants_are_refused(self, login: str, bind: Bind, tenants: Tenants) -> None:
        bind(login)
        with db.user_data_session(user_id=tenants.one) as session:
            session.add(UserProfile(user_id=tenants.two))
            with pytest.raises(ProgrammingError, match="row-level security"):
                session.flush()
            session.rollback()


class TestRefusals:
    @pytest.mark.parametrize("value", ["", "1", "not-a-uuid", "'; DROP TABLE users; --", None, 7])
    def test_of_what_is_no_uuid(self, value: object, bind: Bind) -> None:
        bind()
        with db.user_data_session() as session:
            with pytest.raises(db.UserContextRefused, match=r"The user's id has to be a UUID\."):
                db.set_user_context(value, session)  # type: ignore[arg-type]  # what a careless caller passes
            with pytest.raises(db.UserContextMissing):
                names(session)

    def test_inside_a_savepoint(self, bind: Bind, tenants: Tenants) -> None:
        bind()
        with db.platform_session() as session:
            session.begin_nested()
            with pytest.raises(db.UserContextRefused, match="A context set inside a savepoint ends with it"):
                db.set_user_context(tenants.one, session)

    def test_on_a_system_session(self, bind: Bind, tenants: Tenants) -> None:
        bind()
        with db.user_data_session(system=True) as session:
            with pytest.raises(db.UserContextRefused, match="system=True"):
                db.set_user_context(tenants.one, session)

    def test_without_a_transaction(self, bind: Bind, tenants: Tenants) -> None:
        bind("worker")  # whose own policy shows every row: a lost context would too
        with db.user_data_session(user_id=tenants.one) as session:
            with pytest.raises(
                db.UserContextRefused, match=r"A user's context needs a transaction: AUTOCOMMIT has none\."
            ):
                session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            with pytest.raises(PendingRollbackError):
                names(session)
            session.rollback()
            assert names(session) == [str(tenants.one)]

    def test_of_a_login_that_may_not_take_the_role(self, bind: Bind, tenants: Tenants) -> None:
        bind("owner")
        with (
            pytest.raises(ConfigurationError) as refused,
            db.user_data_session(user_id=tenants.one) as session,
        ):
            names(session)
        assert str(refused.value) == (
            "The login dev_owner may not take the role authenticated_users.\n"
            'Next step: let an administrator run GRANT usage_app TO "dev_owner" if it is an application\'s '
            "login, or run `usage-worker db init` if it is the worker's."
        )


class TestOtherSessions:
    def test_the_platforms_own_rows(self, bind: Bind, tenants: Tenants) -> None:
        bind()
        with db.platform_session() as session:
            db.set_user_context(tenants.one, session)
            assert list(session.scalars(select(User.id))) == [tenants.one]
            session.commit()
            assert list(session.scalars(select(User.id))) == [tenants.one]

    def test_one_that_has_begun_already(self, bind: Bind, tenants: Tenants) -> None:
        bind("worker")
        with db.platform_session() as session:
            assert len(session.scalars(select(User.id)).all()) == 2
            db.set_user_context(tenants.one, session)
            assert list(session.scalars(select(User.id))) == [tenants.one]

    def test_an_applications_own_sessionmaker(self, bind: Bind, tenants: Tenants) -> None:
        bind()
        factory = sessionmaker(db.engine_for(Database.USER_DATA))
        with factory() as session:
            db.set_user_context(tenants.one, session)
            session.commit()
            assert names(session) == [str(tenants.one)]
        with factory() as session, pytest.raises(ProgrammingError, match="permission denied"):
            names(session)

    def test_a_session_that_was_closed_and_is_used_again(self, bind: Bind, tenants: Tenants) -> None:
        bind()
        dependency = db.get_user_data_db()
        session = next(dependency)
        db.set_user_context(tenants.one, session)
        session.close()
        assert names(session) == [str(tenants.one)]
        dependency.close()


class TestDependencies:
    @pytest.mark.parametrize("dependency", [db.get_platform_db, db.get_user_data_db])
    def test_roll_back_what_was_not_committed(
        self, dependency: Callable[[], object], bind: Bind, tenants: Tenants, databases: Databases
    ) -> None:
        bind("worker")
        for end in ("close", "throw"):
            generator = dependency()
            session = next(generator)  # type: ignore[call-overload]  # both are generators of a Session
            if dependency is db.get_user_data_db:
                db.set_user_context(tenants.one, session)
                session.add(UserProfile(user_id=tenants.one))
            else:
                session.add(User(id=uuid.uuid4()))
            session.flush()
            if end == "close":
                generator.close()  # type: ignore[attr-defined]  # see above
            else:
                with pytest.raises(KeyError):
                    generator.throw(KeyError())  # type: ignore[attr-defined]  # see above
        with psycopg.connect(databases.user_data.url("superuser")) as connection:
            assert connection.execute("SELECT count(*) FROM user_profiles").fetchone() == (2,)
        with psycopg.connect(databases.platform.url("superuser")) as connection:
            assert connection.execute("SELECT count(*) FROM users").fetchone() == (2,)

    def test_context_managers_commit_at_the_end_and_roll_back_on_an_error(
        self, bind: Bind, tenants: Tenants
    ) -> None:
        bind()
        with db.user_data_session(user_id=tenants.one) as session:
            session.add(UserProfile(user_id=tenants.one, business_name="kept"))
        with pytest.raises(KeyError), db.user_data_session(user_id=tenants.one) as session:  # noqa: PT012 - the whole block fails
            session.add(UserProfile(user_id=tenants.one, business_name="lost"))
            session.flush()
            raise KeyError
        with db.user_data_session(user_id=tenants.one) as session:
            assert sorted(filter(None, names(session))) == sorted([str(tenants.one), "kept"])
