"""TLS to both databases, with a certificate made here. The embedded server has none, so a relay ends it."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import trustme
from sqlalchemy import text

from tests.fixtures.databases import Databases
from tests.integration.db.relay import Relay
from tests.integration.db.tenants import Bind
from worker import db
from worker.errors import ConfigurationError


@dataclass(frozen=True)
class Tls:
    """A relay that speaks TLS, the authority that vouches for it, and one that does not."""

    relay: Relay
    authority: Path
    stranger: Path


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path, Path]:
    """The authority of the server's certificate, and the files of that one and of another one."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "stranger.pem")
    return authority, folder / "ca.pem", folder / "stranger.pem"


@pytest.fixture
def tls(databases: Databases, authorities: tuple[trustme.CA, Path, Path]) -> Iterator[Tls]:
    """One relay serves both databases, as one server with TLS would."""
    authority, good, stranger = authorities
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with Relay(databases.platform.postgres.port, tls=context) as relay:
        yield Tls(relay, good, stranger)


def urls(databases: Databases, port: int, query: str, host: str = "localhost") -> dict[str, str]:
    """Both databases and all logins by one port."""
    found: dict[str, str] = {}
    for prefix, clone in (("PLATFORM", databases.platform), ("USER_DATA", databases.user_data)):
        url = clone.url("worker").replace(f"127.0.0.1:{clone.postgres.port}", f"{host}:{port}") + query
        found |= {f"{prefix}_DATABASE_{kind}URL": url for kind in ("", "OWNER_", "AUDIT_")}
    return found


class TestTls:
    def test_verify_full_reaches_both_databases(self, tls: Tls, databases: Databases, bind: Bind) -> None:
        bind("worker", **urls(databases, tls.relay.port, f"?sslmode=verify-full&sslrootcert={tls.authority}"))
        db.init_databases()
        for opened in (db.platform_session(), db.user_data_session(system=True)):
            with opened as session:
                driver = session.connection().connection.dbapi_connection
                assert isinstance(driver, psycopg.Connection)
                assert driver.pgconn.ssl_in_use
                assert session.scalar(text("SELECT 1")) == 1
        assert tls.relay.encrypted >= 2

    def test_another_authority_is_refused(self, tls: Tls, databases: Databases, bind: Bind) -> None:
        bind("worker", **urls(databases, tls.relay.port, f"?sslmode=verify-full&sslrootcert={tls.stranger}"))
        with pytest.raises(ConfigurationError) as refused:
            db.init_databases()
        message = str(refused.value)
        assert message.startswith(
            "PLATFORM_DATABASE_URL: the server's certificate is not one that sslrootcert vouches for"
        )
        assert "certificate verify failed" in message
        assert message.endswith(
            "Next step: point sslrootcert in PLATFORM_DATABASE_URL to the authority that signed it, and use "
            "the host name in it."
        )
        assert databases.platform.postgres.passwords["worker"] not in message

    def test_another_host_name_is_refused(self, tls: Tls, databases: Databases, bind: Bind) -> None:
        query = f"?sslmode=verify-full&sslrootcert={tls.authority}"
        bind("worker", **urls(databases, tls.relay.port, query, host="127.0.0.1"))
        with pytest.raises(ConfigurationError, match="is not one that sslrootcert vouches for"):
            db.init_databases()

    def test_a_missing_authority_is_named(self, tls: Tls, databases: Databases, bind: Bind) -> None:
        bind("worker", **urls(databases, tls.relay.port, "?sslmode=verify-full&sslrootcert=/nonexistent.pem"))
        with pytest.raises(
            ConfigurationError, match="a certificate file that sslmode needs cannot be used"
        ) as gone:
            db.init_databases()
        assert "/nonexistent.pem" in str(gone.value)

    @pytest.mark.parametrize("sslmode", ["require", "verify-ca", "verify-full"])
    def test_a_server_without_tls_is_refused(
        self, sslmode: str, tls: Tls, databases: Databases, bind: Bind
    ) -> None:
        port = databases.platform.postgres.port
        bind("worker", **urls(databases, port, f"?sslmode={sslmode}&sslrootcert={tls.authority}"))
        with pytest.raises(
            ConfigurationError, match="sslmode asks for TLS, but the server does not offer it"
        ):
            db.init_databases()
