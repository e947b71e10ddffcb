"""Every good, bad and odd database URL, in one table each."""

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from worker.database_url import Database, DatabaseURL, DatabaseURLBuilder, PoolMode
from worker.errors import ConfigurationError

SECRET = "S3cretWord"  # noqa: S105 - not one: what no message may show
POOLER = "aws-0-eu-central-1.pooler.supabase.com"

# URL, then host, port, database, user name, password as they must be understood.
GOOD = {
    "postgres": ("postgres://app:pw@db/usage", ("db", 5432, "usage", "app", "pw")),
    "postgresql": ("postgresql://app:pw@db:5433/usage", ("db", 5433, "usage", "app", "pw")),
    "driver given": ("postgresql+psycopg://app:pw@db/usage", ("db", 5432, "usage", "app", "pw")),
    "spaces around": ("  postgresql://app:pw@db/usage\n", ("db", 5432, "usage", "app", "pw")),
    "no password": ("postgresql://app@db/usage", ("db", 5432, "usage", "app", None)),
    "empty password": ("postgresql://app:@db/usage", ("db", 5432, "usage", "app", None)),
    "password with @ and %": ("postgresql://app:p%40s%25s@db/usage", ("db", 5432, "usage", "app", "p@s%s")),
    "password with / ? # :": (
        "postgresql://app:a%2Fb%3Fc%23d:e@db/usage",
        ("db", 5432, "usage", "app", "a/b?c#d:e"),
    ),
    "password with + and &": ("postgresql://app:a+b&c@db/usage", ("db", 5432, "usage", "app", "a+b&c")),
    "password of a language": ("postgresql://app:gr%C3%BCn@db/usage", ("db", 5432, "usage", "app", "grün")),
    "encoded names": ("postgresql://a%40b:pw@db/us%20age", ("db", 5432, "us age", "a@b", "pw")),
    "IPv4": ("postgresql://app:pw@10.0.0.7/usage", ("10.0.0.7", 5432, "usage", "app", "pw")),
    "IPv6": ("postgresql://app:pw@[2001:db8::7]:5433/usage", ("2001:db8::7", 5433, "usage", "app", "pw")),
    "IPv6 without port": ("postgresql://app:pw@[::1]/usage", ("::1", 5432, "usage", "app", "pw")),
    "socket in the query": ("postgresql:///usage?host=/run/pg", ("/run/pg", 5432, "usage", None, None)),
    "socket with login": (
        "postgresql://app:pw@/usage?host=/run/pg&port=5433",
        ("/run/pg", 5433, "usage", "app", "pw"),
    ),
    "socket encoded": ("postgresql://app@%2Frun%2Fpg/usage", ("/run/pg", 5432, "usage", "app", None)),
    "host in the query": ("postgresql://app@/usage?host=db", ("db", 5432, "usage", "app", None)),
    "libpq's parameters": (
        "postgresql://app:pw@db/usage?sslmode=verify-full&sslrootcert=/etc/ca%20s.pem&connect_timeout=3"
        "&keepalives_idle=20&target_session_attrs=read-write&channel_binding=require",
        ("db", 5432, "usage", "app", "pw"),
    ),
    "Render, external": (
        "postgresql://app:pw@dpg-c1a2-a.frankfurt-postgres.render.com/usage_x1y2?sslmode=require",
        ("dpg-c1a2-a.frankfurt-postgres.render.com", 5432, "usage_x1y2", "app", "pw"),
    ),
    "Supabase, direct": (
        "postgresql://postgres:pw@db.abcdefghijklmnop.supabase.co:5432/postgres",
        ("db.abcdefghijklmnop.supabase.co", 5432, "postgres", "postgres", "pw"),
    ),
    "Supabase, session pooler": (
        f"postgresql://postgres.abcdefghijklmnop:pw@{POOLER}:5432/postgres",
        (POOLER, 5432, "postgres", "postgres.abcdefghijklmnop", "pw"),
    ),
}

# URL, then what the message says.
BAD = {
    "psycopg2": (
        "postgresql+psycopg2://app:S3cretWord@db/usage",
        "driver psycopg2, but psycopg 3 is the only one.*write postgresql://",
    ),
    "asyncpg": ("postgresql+asyncpg://app:S3cretWord@db/usage", "driver asyncpg.*write postgresql://"),
    "unknown driver": ("postgres+magic://app:S3cretWord@db/usage", "driver magic.*write postgresql://"),
    "upper case": ("PostgreSQL://app:S3cretWord@db/usage", "has to be written postgresql://"),
    "jdbc": ("jdbc:postgresql://db/usage?user=app&password=S3cretWord", "has to be written postgresql://"),
    "mysql": ("mysql://app:S3cretWord@db/usage", "mysql is not PostgreSQL"),
    "mysql with driver": ("mysql+pymysql://app:S3cretWord@db/usage", "mysql is not PostgreSQL"),
    "sqlite": (
        "sqlite:///usage.db",
        "sqlite is not PostgreSQL, and there is no other database it could fall back to",
    ),
    "no scheme": ("app:S3cretWord@db/usage", "not a URL"),
    "libpq's words": ("host=db dbname=usage password=S3cretWord", "not a URL"),
    "quoted": ('"postgresql://app:S3cretWord@db/usage"', "quotation mark"),
    "placeholder": ("postgresql://postgres:[YOUR-PASSWORD]@db/usage", "placeholder"),
    "angle placeholder": ("postgresql://app:<password>@db/usage", "placeholder"),
    "space in the password": ("postgresql://app:S3cret Word@db/usage", "%20"),
    "raw @ in the password": ("postgresql://app:S3cret@Word@db/usage", "%40"),
    "raw / in the password": ("postgresql://app:S3cret/Word@db/usage", "%2F"),
    "raw ? in the password": ("postgresql://app:S3cret?Word@db/usage", "%3F"),
    "raw % in the password": ("postgresql://app:S3cret%Word@db/usage", "%25"),
    "not UTF-8": ("postgresql://app:S3cret%FFWord@db/usage", "not UTF-8"),
    "NUL": ("postgresql://app:S3cretWord%00@db/usage", "NUL"),
    "forgotten @": ("postgresql://app:S3cretWord/usage", "port has to be a number"),
    "port of letters": ("postgresql://app:S3cretWord@db:http/usage", "port has to be a number"),
    "port 0": ("postgresql://app:S3cretWord@db:0/usage", "port has to be a number"),
    "port 65536": ("postgresql://app:S3cretWord@db:65536/usage", "port has to be a number"),
    "IPv6 without brackets": ("postgresql://app:S3cretWord@2001:db8::7/usage", "in brackets"),
    "bad IPv6": ("postgresql://app:S3cretWord@[12:xyz]/usage", "cannot be read"),
    "not an address": ("postgresql://app:S3cretWord@[1::2::3]/usage", "neither a name"),
    "bad host": ("postgresql://app:S3cretWord@d!b/usage", "neither a name"),
    "no host": ("postgresql://app:S3cretWord@/usage", "host is missing"),
    "no user": ("postgresql://db/usage", "user name is missing"),
    "no database": ("postgresql://app:S3cretWord@db", "name of the database is missing"),
    "no database but a slash": ("postgresql://app:S3cretWord@db:5432/", "name of the database is missing"),
    "several hosts": ("postgresql://app:S3cretWord@db1,db2/usage", "several hosts"),
    "several hosts and ports": ("postgresql://app:S3cretWord@db1:1,db2:2/usage", "several hosts"),
    "several hosts in the query": ("postgresql://app@/usage?host=db1,db2", "several hosts"),
    "host twice": ("postgresql://app:S3cretWord@db/usage?host=/run/pg", "named twice"),
    "pgbouncer": (
        "postgresql://app:S3cretWord@db/usage?pgbouncer=true",
        "the parameter pgbouncer is not understood here.*DB_POOL_MODE=transaction",
    ),
    "supa": ("postgresql://app:S3cretWord@db/usage?sslmode=require&supa=base-pooler.x", "supa.*remove it"),
    "Prisma's pool": (
        "postgresql://app:S3cretWord@db/usage?connection_limit=1",
        "connection_limit.*DB_POOL_SIZE",
    ),
    "Prisma's schema": ("postgresql://app:S3cretWord@db/usage?schema=public", "schema.*remove it"),
    "asyncpg's ssl": ("postgresql://app:S3cretWord@db/usage?ssl=require", "ssl .*sslmode=require"),
    "asyncpg's cache": (
        "postgresql://app:S3cretWord@db/usage?statement_cache_size=0",
        "statement_cache_size.*DB_POOL_MODE=transaction",
    ),
    "password in the query": ("postgresql://app@db/usage?password=S3cretWord", "password.*in front of the"),
    "service": ("postgresql://app:S3cretWord@db/usage?service=x", "service.*write host"),
    "misspelt parameter": (
        "postgresql://app:S3cretWord@db/usage?sslmod=require",
        "sslmod.*did you mean sslmode",
    ),
    "unknown parameter": ("postgresql://app:S3cretWord@db/usage?zzz=1", "zzz.*unknown; remove it"),
    "parameter twice": (
        "postgresql://app:S3cretWord@db/usage?sslmode=require&sslmode=disable",
        "given twice",
    ),
    "parameter without value": ("postgresql://app:S3cretWord@db/usage?sslmode=", "sslmode has no value"),
    "sslmode=true": ("postgresql://app:S3cretWord@db/usage?sslmode=true", "sslmode=true does not exist"),
    "sslmode=required": ("postgresql://app:S3cretWord@db/usage?sslmode=required", "write sslmode=require "),
    "sslmode=verify_full": (
        "postgresql://app:S3cretWord@db/usage?sslmode=verify_full",
        "write sslmode=verify-full",
    ),
    "timeout of letters": (
        "postgresql://app:S3cretWord@db/usage?connect_timeout=soon",
        "connect_timeout.*number",
    ),
}


class TestParse:
    @pytest.mark.parametrize("case", GOOD)
    def test_understands(self, case: str) -> None:
        text, expected = GOOD[case]
        url = DatabaseURL.parse(text, variable="PLATFORM_DATABASE_URL")
        password = None if url.sqlalchemy.password is None else str(url.sqlalchemy.password)
        assert (url.host, url.port, url.database, url.username, password) == expected
        assert url.sqlalchemy.drivername == "postgresql+psycopg"

    @pytest.mark.parametrize("case", GOOD)
    def test_writes_a_url_that_libpq_understands_in_the_same_way(self, case: str) -> None:
        text, (host, port, database, username, password) = GOOD[case]
        url = DatabaseURL.parse(text, variable="X")
        said = conninfo_to_dict(url.libpq)
        assert (said["host"], said["dbname"], said.get("user")) == (host, database, username)
        assert said.get("password") == password
        assert int(said.get("port") or 5432) == port
        assert DatabaseURL.parse(url.libpq, variable="X") == url

    @pytest.mark.parametrize("case", GOOD)
    def test_gives_sqlalchemy_the_same_parameters_as_libpq(self, case: str) -> None:
        url = DatabaseURL.parse(GOOD[case][0], variable="X")
        _, arguments = url.sqlalchemy.get_dialect()().create_connect_args(url.sqlalchemy)
        mine = conninfo_to_dict(psycopg.conninfo.make_conninfo(**arguments))
        theirs = conninfo_to_dict(url.libpq)
        assert {name: str(value) for name, value in mine.items()} == {n: str(v) for n, v in theirs.items()}

    @pytest.mark.parametrize("case", BAD)
    def test_refuses(self, case: str) -> None:
        text, said = BAD[case]
        with pytest.raises(ConfigurationError, match=said) as refused:
            DatabaseURL.parse(text, variable="PLATFORM_DATABASE_URL")
        message = str(refused.value)
        assert message.startswith("PLATFORM_DATABASE_URL: ")
        assert "Example: PLATFORM_DATABASE_URL=postgresql://" in message
        for fragment in (SECRET, "S3cret", "Word@", "Word/"):
            assert fragment not in message
        assert refused.value.__suppress_context__, "the cause would show the URL in a traceback"

    def test_shows_what_was_found_without_the_password(self) -> None:
        with pytest.raises(ConfigurationError, match=r"Found: +mysql://app:\*\*\*@db:3306/usage\?…"):
            DatabaseURL.parse("mysql://app:S3cretWord@db:3306/usage?a=S3cretWord", variable="X")

    @pytest.mark.parametrize("case", GOOD)
    def test_never_shows_a_password(self, case: str) -> None:
        text, (*_, password) = GOOD[case]
        url = DatabaseURL.parse(text.replace("pw@", f"{SECRET}@"), variable="X")
        for shown in (repr(url), str(url), f"{url}", url.redacted, repr([url]), repr(url.sqlalchemy)):
            assert SECRET not in shown
            assert password is None or len(password) < 4 or password not in shown
        if "pw@" in text:
            assert ":***@" in url.redacted

    def test_example_urls_are_good(self) -> None:
        for database in Database:
            DatabaseURL.parse(database.example, variable="X")


class TestSameDatabaseAs:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("postgresql://a@localhost/usage", "postgresql://b:pw@127.0.0.1:5432/usage"),
            ("postgresql://a@localhost/usage", "postgresql://b@[::1]/usage?sslmode=disable"),
            ("postgresql://a@DB.example.com./usage", "postgresql://b@db.example.com:5432/usage"),
            ("postgresql://a@[2001:db8:0::7]/usage", "postgresql://a@[2001:db8::7]/usage"),
            ("postgresql:///usage?host=/run/pg/", "postgresql://a@/usage?host=/run/pg"),
            (
                f"postgresql://postgres.abcdef:x@{POOLER}:5432/postgres",
                f"postgresql://app.abcdef:x@{POOLER}:6543/postgres",
            ),
            (
                "postgresql://postgres:x@db.abcdef.supabase.co/postgres",
                f"postgresql://app.abcdef:x@{POOLER}:6543/postgres",
            ),
        ],
    )
    def test_sees_through_spellings(self, one: str, other: str) -> None:
        first, second = DatabaseURL.parse(one, variable="A"), DatabaseURL.parse(other, variable="B")
        assert first.same_database_as(second)
        assert second.same_database_as(first)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("postgresql://a@localhost/usage", "postgresql://a@localhost/other"),
            ("postgresql://a@localhost/usage", "postgresql://a@localhost:5433/usage"),
            ("postgresql://a@one/usage", "postgresql://a@two/usage"),
            ("postgresql:///usage?host=/run/a", "postgresql:///usage?host=/run/b"),
            (
                f"postgresql://postgres.abcdef:x@{POOLER}/postgres",
                f"postgresql://postgres.uvwxyz:x@{POOLER}/postgres",
            ),
        ],
    )
    def test_tells_databases_apart(self, one: str, other: str) -> None:
        first, second = DatabaseURL.parse(one, variable="A"), DatabaseURL.parse(other, variable="B")
        assert not first.same_database_as(second)


class TestWith:
    def test_changes_the_login_alone(self) -> None:
        url = DatabaseURL.parse("postgresql://a:pw@db/usage?sslmode=require", variable="X")
        assert url.with_login("b c", "p@/").libpq == "postgresql://b%20c:p%40%2F@db/usage?sslmode=require"
        assert url.with_login("b", None).libpq == "postgresql://b@db/usage?sslmode=require"
        assert url.with_login("b", "x").variable == "X"

    def test_changes_the_database_alone(self) -> None:
        url = DatabaseURL.parse("postgresql://a:pw@db:1/usage", variable="X")
        assert url.with_database("x/y").libpq == "postgresql://a:pw@db:1/x%2Fy"


class TestBuilder:
    PARTS = {  # noqa: RUF012 a constant of this class
        "PLATFORM_POSTGRES_HOST": "db",
        "PLATFORM_POSTGRES_PORT": "5433",
        "PLATFORM_POSTGRES_USER": "app",
        "PLATFORM_POSTGRES_PASSWORD": "p@s/s%?#:[w ",
        "PLATFORM_POSTGRES_DB": "usage",
        "PLATFORM_POSTGRES_SSLMODE": "require",
    }

    @pytest.mark.parametrize("value", ["", "   ", "\n"])
    def test_takes_blank_as_missing(self, value: str) -> None:
        assert DatabaseURLBuilder({"PLATFORM_DATABASE_URL": value}).build(Database.PLATFORM) is None
        assert DatabaseURLBuilder({}).build(Database.PLATFORM) is None

    def test_builds_every_kind(self) -> None:
        environ = {
            "USER_DATA_DATABASE_URL": "postgres://app@db/usage",
            "USER_DATA_DATABASE_OWNER_URL": "postgres://owner@db/usage",
            "USER_DATA_DATABASE_AUDIT_URL": "postgres://audit@db/usage",
            "USER_DATA_DATABASE_DIRECT_URL": "postgres://app@direct/usage",
        }
        builder = DatabaseURLBuilder(environ)
        built = [builder.build(Database.USER_DATA, kind) for kind in ("", "OWNER", "AUDIT", "DIRECT")]
        assert [url and url.username for url in built] == ["app", "owner", "audit", "app"]
        assert [url and url.variable for url in built] == list(environ)
        assert builder.build(Database.PLATFORM) is None

    def test_builds_from_parts_with_any_password(self) -> None:
        url = DatabaseURLBuilder(self.PARTS).build(Database.PLATFORM)
        assert url is not None
        assert str(url.sqlalchemy.password) == "p@s/s%?#:[w "
        said = conninfo_to_dict(url.libpq)
        assert said == {
            "host": "db",
            "port": "5433",
            "user": "app",
            "password": "p@s/s%?#:[w ",
            "dbname": "usage",
            "sslmode": "require",
        }

    def test_builds_from_parts_with_a_socket_or_an_ipv6_host(self) -> None:
        for host in ("/run/pg", "::1", "[::1]"):
            url = DatabaseURLBuilder({**self.PARTS, "PLATFORM_POSTGRES_HOST": host}).build(Database.PLATFORM)
            assert url is not None
            assert url.host == host.strip("[]")

    def test_refuses_a_url_beside_parts(self) -> None:
        environ = {**self.PARTS, "PLATFORM_DATABASE_URL": "postgresql://a:S3cretWord@db/usage"}
        with pytest.raises(
            ConfigurationError, match=r"PLATFORM_DATABASE_URL and PLATFORM_POSTGRES_DB, .*both set"
        ):
            DatabaseURLBuilder(environ).build(Database.PLATFORM)

    def test_refuses_incomplete_parts(self) -> None:
        environ = {"PLATFORM_POSTGRES_HOST": "db", "PLATFORM_POSTGRES_PASSWORD": SECRET}
        with pytest.raises(
            ConfigurationError, match="PLATFORM_POSTGRES_USER, PLATFORM_POSTGRES_DB: missing"
        ) as refused:
            DatabaseURLBuilder(environ).build(Database.PLATFORM)
        assert SECRET not in str(refused.value)

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("PORT", "many", "port has to be a number"),
            ("SSLMODE", "on", "sslmode=on does not exist"),
            ("HOST", "db:5432", "neither a name"),
            ("HOST", "postgresql://db", "neither a name"),
        ],
    )
    def test_refuses_a_bad_part(self, name: str, value: str, said: str) -> None:
        environ = {**self.PARTS, f"PLATFORM_POSTGRES_{name}": value, "PLATFORM_POSTGRES_PASSWORD": SECRET}
        with pytest.raises(ConfigurationError, match=said) as refused:
            DatabaseURLBuilder(environ).build(Database.PLATFORM)
        assert SECRET not in str(refused.value)

    def test_refuses_the_transaction_pooler_in_session_mode(self) -> None:
        environ = {"PLATFORM_DATABASE_URL": f"postgresql://postgres.abc:{SECRET}@{POOLER}:6543/postgres"}
        with pytest.raises(ConfigurationError, match="port 6543 is a transaction pooler") as refused:
            DatabaseURLBuilder(environ).build(Database.PLATFORM)
        assert "PLATFORM_DB_POOL_MODE=transaction" in str(refused.value)
        assert SECRET not in str(refused.value)
        for variable in ("DB_POOL_MODE", "PLATFORM_DB_POOL_MODE"):
            assert (
                DatabaseURLBuilder({**environ, variable: "transaction"}).build(Database.PLATFORM) is not None
            )

    def test_refuses_the_transaction_pooler_as_the_way_around_it(self) -> None:
        environ = {"PLATFORM_DATABASE_DIRECT_URL": "postgresql://a@h:6543/db", "DB_POOL_MODE": "transaction"}
        with pytest.raises(ConfigurationError, match="is to go around it"):
            DatabaseURLBuilder(environ).build(Database.PLATFORM, "DIRECT")


class TestPoolMode:
    def test_is_session_unless_declared(self) -> None:
        assert DatabaseURLBuilder({}).pool_mode(Database.PLATFORM) is PoolMode.SESSION

    def test_prefers_a_databases_own_variable(self) -> None:
        builder = DatabaseURLBuilder({"DB_POOL_MODE": "transaction", "USER_DATA_DB_POOL_MODE": "session"})
        assert builder.pool_mode(Database.PLATFORM) is PoolMode.TRANSACTION
        assert builder.pool_mode(Database.USER_DATA) is PoolMode.SESSION

    @pytest.mark.parametrize("variable", ["DB_POOL_MODE", "PLATFORM_DB_POOL_MODE"])
    def test_refuses_another_word(self, variable: str) -> None:
        with pytest.raises(ConfigurationError, match=rf"{variable}: found 'statement'"):
            DatabaseURLBuilder({variable: "statement"}).pool_mode(Database.PLATFORM)
