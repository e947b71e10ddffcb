"""Every way in which a connection can fail: one message with the variable, what was found, the next step."""

import re
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from tests.fixtures.databases import Databases
from tests.integration.db.tenants import Bind
from worker import db
from worker.database_url import DatabaseURL
from worker.errors import ConfigurationError, ServiceUnreachable, UsageWorkerError
from worker.settings import load_database_settings
from worker.sqlstate import FailureKind, kind_of

Fail = Callable[..., UsageWorkerError]


@pytest.fixture
def fail() -> Iterator[Fail]:
    """Binds the platform to a URL, uses it, and returns the error."""

    def failed(url: str, **variables: object) -> UsageWorkerError:
        values = {name: str(value) for name, value in variables.items()}
        other = "postgresql://app@127.0.0.1:1/nobody_asks_for_it"
        both = {"PLATFORM_DATABASE_URL": url, "USER_DATA_DATABASE_URL": other}
        db.configure(load_database_settings({**both, **values}))
        with (
            pytest.raises((ConfigurationError, ServiceUnreachable)) as raised,
            db.platform_session() as session,
        ):
            session.connection()
        return raised.value

    yield failed
    db.close_databases()


class Listener:
    """Something on a port that is not PostgreSQL: it answers every first packet with the same bytes."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
                client.recv(1024)
                if self._answer is None:
                    self._open.append(client)  # says nothing, for ever
                    continue
                client.sendall(self._answer)
                client.close()
            except OSError:
                return

    def close(self) -> None:
        # Closing alone would not wake the thread that accepts.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for client in self._open:
            client.close()
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"postgresql://app:S3cretWord@127.0.0.1:{self.port}/usage?sslmode=disable"


def fatal(state: str, words: str) -> bytes:
    """PostgreSQL's answer to a connection that it, or a pooler in front of it, refuses."""
    fields = {"S": "FATAL", "V": "FATAL", "C": state, "M": words}
    body = b"".join(key.encode() + value.encode() + b"\0" for key, value in fields.items()) + b"\0"
    return b"E" + struct.pack("!i", len(body) + 4) + body


@pytest.fixture
def listener() -> Iterator[Callable[[bytes | None], Listener]]:
    opened: list[Listener] = []

    def listen(answer: bytes | None) -> Listener:
        opened.append(Listener(answer))
        return opened[-1]

    yield listen
    for each in opened:
        each.close()


class TestConfiguration:
    """What an operator has to correct: ConfigurationError, exit code 2."""

    def test_wrong_password(self, fail: Fail, databases: Databases) -> None:
        right = DatabaseURL.parse(databases.platform.url("worker"), variable="X")
        error = fail(right.with_login("dev_worker", "S3cret%Word").libpq)
        assert type(error) is ConfigurationError
        assert str(error) == (
            "PLATFORM_DATABASE_URL: the server refused the user name or the password "
            '(password authentication failed for user "dev_worker").\n'
            f"  Found:   {right.redacted}\n"
            "Next step: correct the login in PLATFORM_DATABASE_URL; a special character in the password has "
            "to be percent-encoded (@ is %40, % is %25)."
        )
        assert kind_of(error) is FailureKind.CONFIGURATION

    def test_no_password(self, fail: Fail, databases: Databases) -> None:
        right = DatabaseURL.parse(databases.platform.url("worker"), variable="X")
        error = fail(right.with_login("dev_worker", None).libpq)
        assert "the server refused the user name or the password (fe_sendauth: no password supplied)" in str(
            error
        )

    def test_unknown_login(self, fail: Fail, databases: Databases) -> None:
        right = DatabaseURL.parse(databases.platform.url("worker"), variable="X")
        error = fail(right.with_login("nobody_of_ours", "x").libpq)
        assert "the server refused the user name or the password" in str(error)

    def test_a_group_role_as_login(self, fail: Fail, databases: Databases) -> None:
        role = f"nologin_{uuid.uuid4().hex}"
        with psycopg.connect(databases.platform.url("superuser")) as connection:
            connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN PASSWORD 'x'").format(sql.Identifier(role)))
        right = DatabaseURL.parse(databases.platform.url("worker"), variable="X")
        error = fail(right.with_login(role, "x").libpq)
        assert type(error) is ConfigurationError
        assert "the server has no such login" in str(error)

    def test_no_such_database(self, fail: Fail, databases: Databases) -> None:
        right = DatabaseURL.parse(databases.platform.url("worker"), variable="X")
        error = fail(right.with_database("nowhere").libpq)
        assert type(error) is ConfigurationError
        assert "the server has no database of this name" in str(error)
        assert 'let an administrator run CREATE DATABASE "nowhere"; then run `usage-worker db init`' in str(
            error
        )

    def test_no_right_to_connect(self, fail: Fail, databases: Databases) -> None:
        name = f"closed_{uuid.uuid4().hex}"
        with psycopg.connect(databases.platform.url("superuser"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            connection.execute(
                sql.SQL("REVOKE CONNECT ON DATABASE {} FROM public").format(sql.Identifier(name))
            )
        right = DatabaseURL.parse(databases.platform.url("worker"), variable="X")
        error = fail(right.with_database(name).libpq)
        assert type(error) is ConfigurationError
        assert "the login may not connect to this database" in str(error)

    def test_tls_that_the_server_does_not_offer(self, fail: Fail, databases: Databases) -> None:
        error = fail(databases.platform.url("worker") + "?sslmode=require")
        assert type(error) is ConfigurationError
        assert "sslmode asks for TLS, but the server does not offer it" in str(error)
        assert "switch TLS on at the server" in str(error)

    def test_a_parameter_that_the_server_does_not_know(self, fail: Fail, databases: Databases) -> None:
        error = fail(databases.platform.url("worker") + "?options=-c%20nonsense%3D1")
        assert type(error) is ConfigurationError
        assert "the server or its pooler refused a connection parameter" in str(error)

    @pytest.mark.parametrize(
        ("state", "words", "said"),
        [
            (
                "28000",
                'no pg_hba.conf entry for host "10.0.0.9", user "app", database "usage", no encryption',
                "the server does not admit this login from here without TLS",
            ),
            (
                "28000",
                'no pg_hba.conf entry for host "10.0.0.9", user "app", database "usage", SSL encryption',
                "the server does not admit this login from here (",
            ),
            ("XX000", "Tenant or user not found", "the pooler does not know this project or user"),
            (
                "08P01",
                "unsupported startup parameter: options",
                "the server or its pooler refused a connection parameter",
            ),
        ],
    )
    def test_what_servers_and_poolers_say(
        self, state: str, words: str, said: str, fail: Fail, listener: Callable[[bytes | None], Listener]
    ) -> None:
        error = fail(listener(fatal(state, words)).url)
        assert type(error) is ConfigurationError
        assert str(error).startswith(f"PLATFORM_DATABASE_URL: {said}")
        assert words in str(error)
        assert "S3cretWord" not in str(error)


class TestUnreachable:
    """What can pass by itself: ServiceUnreachable, exit code 3."""

    def test_nothing_listens(self, fail: Fail) -> None:
        error = fail("postgresql://app:S3cretWord@127.0.0.1:1/usage")
        assert isinstance(error, ServiceUnreachable)
        assert error.service == "PLATFORM_DATABASE_URL"
        assert str(error) == (
            "PLATFORM_DATABASE_URL: nothing listens there (Connection refused).\n"
            "  Found:   postgresql://app:***@127.0.0.1:1/usage\n"
            "Next step: start PostgreSQL, or correct host and port in PLATFORM_DATABASE_URL."
        )
        assert kind_of(error) is FailureKind.TRANSIENT

    def test_no_socket(self, fail: Fail) -> None:
        error = fail("postgresql://app@/usage?host=/nonexistent")
        assert isinstance(error, ServiceUnreachable)
        assert "nothing listens there" in str(error)

    def test_an_unknown_host(self, fail: Fail) -> None:
        error = fail("postgresql://app:S3cretWord@no-such-host.invalid/usage")
        assert isinstance(error, ServiceUnreachable)
        assert "the host name is unknown here" in str(error)

    def test_a_silent_host(self, fail: Fail, listener: Callable[[bytes | None], Listener]) -> None:
        error = fail(listener(None).url, DB_CONNECT_TIMEOUT=2)
        assert isinstance(error, ServiceUnreachable)
        assert "the server did not answer in time" in str(error)
        assert "DB_CONNECT_TIMEOUT" in str(error)

    @pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
    def test_another_program(
        self, answer: bytes, fail: Fail, listener: Callable[[bytes | None], Listener]
    ) -> None:
        error = fail(listener(answer).url)
        assert isinstance(error, ServiceUnreachable)
        assert "something answers there, but not as PostgreSQL does" in str(error)

    def test_too_many_connections(self, fail: Fail, databases: Databases) -> None:
        role = f"limited_{uuid.uuid4().hex}"
        with psycopg.connect(databases.platform.url("superuser")) as connection:
            create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x' CONNECTION LIMIT 0").format(
                sql.Identifier(role)
            )
            connection.execute(create)
        right = DatabaseURL.parse(databases.platform.url("worker"), variable="X")
        error = fail(right.with_login(role, "x").libpq)
        assert isinstance(error, ServiceUnreachable)
        assert re.search(r"the server has no free connection \(too many connections for role", str(error))
        assert "lower DB_POOL_SIZE" in str(error)

    @pytest.mark.parametrize(
        ("state", "words", "said"),
        [
            ("53300", "sorry, too many clients already", "the server has no free connection"),
            (
                "53300",
                "remaining connection slots are reserved for roles with the SUPERUSER attribute",
                "the server has no free connection",
            ),
            ("XX000", "MaxClientsInSessionMode: max clients reached", "the server has no free connection"),
            ("XX000", "Max client connections reached", "the server has no free connection"),
            ("57P03", "the database system is starting up", "PostgreSQL is starting or stopping"),
            ("57P03", "the database system is shutting down", "PostgreSQL is starting or stopping"),
            (
                "08P01",
                "server login has been failing, try again later (server_login_retry)",
                "PostgreSQL is starting or stopping",
            ),
            ("58000", "der Server spricht Deutsch", "no connection (der Server spricht Deutsch)"),
        ],
    )
    def test_what_servers_and_poolers_say(
        self, state: str, words: str, said: str, fail: Fail, listener: Callable[[bytes | None], Listener]
    ) -> None:
        error = fail(listener(fatal(state, words)).url)
        assert isinstance(error, ServiceUnreachable)
        assert str(error).startswith(f"PLATFORM_DATABASE_URL: {said}")
        assert "S3cretWord" not in str(error)

    def test_a_stopped_server_and_its_return(
        self, bind: Bind, listener: Callable[[bytes | None], Listener]
    ) -> None:
        url = listener(fatal("57P03", "the database system is starting up")).url
        bind(
            "worker",
            USER_DATA_DATABASE_URL=url,
            USER_DATA_DATABASE_OWNER_URL=url,
            USER_DATA_DATABASE_AUDIT_URL=url,
        )
        with pytest.raises(ServiceUnreachable, match="USER_DATA_DATABASE_URL"):
            db.init_databases()
        bind("worker")
        db.init_databases()
