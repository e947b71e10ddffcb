"""The dependencies in a real application, over real connections."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from tests.integration.db.tenants import Bind, Tenants
from worker import db
from worker.database_url import Database
from worker.db.fastapi import platform_db, user_data_db
from worker.models.platform import User
from worker.models.user_data import UserProfile


async def current_user(x_user: Annotated[str, Header()]) -> str:
    return x_user


UserDb = Annotated[Session, Depends(user_data_db(current_user))]
PlatformDb = Annotated[Session, Depends(platform_db(current_user))]


def application() -> FastAPI:
    """An application with every way of using the dependency that the tests need."""
    app = FastAPI()

    @app.get("/mine")
    def mine(session: UserDb, platform: PlatformDb) -> dict[str, list[str]]:
        names = [name or "" for name in session.scalars(select(UserProfile.business_name))]
        return {"profiles": names, "users": [str(user) for user in platform.scalars(select(User.id))]}

    @app.post("/twice")
    def twice(session: UserDb, x_user: Annotated[uuid.UUID, Header()]) -> list[int]:
        counts = []
        for turn in range(2):
            session.add(UserProfile(user_id=x_user, business_name=f"turn {turn}"))
            session.commit()
            counts.append(session.scalar(select(func.count()).select_from(UserProfile)) or 0)
        return counts

    @app.post("/fails")
    def fails(session: UserDb, x_user: Annotated[uuid.UUID, Header()]) -> None:
        session.add(UserProfile(user_id=x_user, business_name="lost"))
        session.flush()
        raise HTTPException(418)

    @app.get("/slow")
    def slow(session: UserDb) -> list[str | None]:
        first = list(session.scalars(select(UserProfile.business_name)))
        session.execute(text("SELECT pg_sleep(0.01)"))
        session.commit()
        return first + list(session.scalars(select(UserProfile.business_name)))

    @app.get("/raw")
    def raw(session: Annotated[Session, Depends(db.get_user_data_db)]) -> None:
        session.execute(text("SELECT 1"))

    @app.get("/untouched")
    def untouched(session: UserDb) -> str:
        return type(session).__name__

    return app


Ask = Callable[..., list[httpx.Response]]


@pytest.fixture
def ask() -> Ask:
    """Sends one request for each user, all at once, and returns the answers in the same order."""
    app = application()

    async def send(method: str, path: str, users: tuple[object, ...]) -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app", timeout=60) as client:
            requests = [client.request(method, path, headers={"X-User": str(user)}) for user in users]
            return list(await asyncio.gather(*requests))

    return lambda method, path, *users: asyncio.run(send(method, path, users))


class TestUserDataDb:
    def test_shows_the_users_rows_in_both_databases(self, ask: Ask, bind: Bind, tenants: Tenants) -> None:
        bind()
        for user in (tenants.one, tenants.two):
            [answer] = ask("GET", "/mine", user)
            assert answer.json() == {"profiles": [str(user)], "users": [str(user)]}

    def test_an_endpoint_that_commits_twice_keeps_its_tenant(
        self, ask: Ask, bind: Bind, tenants: Tenants
    ) -> None:
        bind()
        [answer] = ask("POST", "/twice", tenants.one)
        assert answer.json() == [2, 3]
        [answer] = ask("GET", "/mine", tenants.two)
        assert answer.json()["profiles"] == [str(tenants.two)]

    def test_an_error_rolls_back(self, ask: Ask, bind: Bind, tenants: Tenants) -> None:
        bind(DB_POOL_SIZE=1, DB_MAX_OVERFLOW=0)
        [answer] = ask("POST", "/fails", tenants.one)
        assert answer.status_code == 418
        [answer] = ask("GET", "/mine", tenants.one)
        assert answer.json()["profiles"] == [str(tenants.one)]

    def test_concurrent_tenants_on_one_connection_never_mix(
        self, ask: Ask, bind: Bind, tenants: Tenants
    ) -> None:
        bind(DB_POOL_SIZE=1, DB_MAX_OVERFLOW=0)
        users = [tenants.one, tenants.two] * 20
        answers = [answer.json() for answer in ask("GET", "/slow", *users)]
        assert answers == [[str(user), str(user)] for user in users]

    def test_a_request_without_context_is_refused_before_its_query(self, ask: Ask, bind: Bind) -> None:
        bind()
        with pytest.raises(db.UserContextMissing):
            ask("GET", "/raw", "nobody")

    def test_a_user_that_is_no_uuid_is_refused(self, ask: Ask, bind: Bind) -> None:
        bind()
        with pytest.raises(db.UserContextRefused):
            ask("GET", "/mine", "somebody")

    def test_takes_no_connection_before_the_first_query(self, ask: Ask, bind: Bind, tenants: Tenants) -> None:
        bind()
        [answer] = ask("GET", "/untouched", tenants.one)
        assert answer.json() == "UserDataSession"
        assert db.engine_for(Database.USER_DATA).pool.checkedin() == 0  # type: ignore[attr-defined]  # a queue
