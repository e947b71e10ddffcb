"""The logins of an embedded PostgreSQL: one per part that the product plays, none of them a superuser."""

import secrets
from collections.abc import Mapping
from enum import StrEnum

import psycopg
from psycopg import sql


class Part(StrEnum):
    """Who logs in. The value names the login's part; `login` is the role."""

    OWNER = "owner"
    WORKER = "worker"
    APP = "app"
    AUDITOR = "auditor"

    @property
    def login(self) -> str:
        """The name of the LOGIN role."""
        return f"dev_{self.value}"

    @property
    def group(self) -> str:
        """The NOLOGIN group role that the login belongs to."""
        return f"usage_{self.value}"


def new_passwords() -> dict[str, str]:
    """This function will make a random password for each part."""
    return {part.value: secrets.token_urlsafe(24) for part in Part}


def create_logins(superuser_url: str, passwords: Mapping[str, str]) -> None:
    """This function will create the LOGIN roles, or give those that exist these passwords.

    The owner may create roles and grant pg_monitor, as the administrator of a managed PostgreSQL may; the
    others get what `db init` grants them.
    """
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        for part in Part:
            found = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [part.login]).fetchone()
            connection.execute(
                sql.SQL("{verb} ROLE {name} LOGIN {rights} PASSWORD {password}").format(
                    verb=sql.SQL("ALTER" if found else "CREATE"),
                    name=sql.Identifier(part.login),
                    rights=sql.SQL("CREATEROLE" if part is Part.OWNER else ""),
                    password=sql.Literal(passwords[part.value]),
                )
            )
        connection.execute(
            sql.SQL("GRANT pg_monitor TO {} WITH ADMIN OPTION").format(sql.Identifier(Part.OWNER.login))
        )


def create_database(superuser_url: str, name: str) -> None:
    """This function will create a database that the owner login owns, unless it exists."""
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
            return
        owner = sql.Identifier(Part.OWNER.login)
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), owner))


def admit_app(superuser_url: str) -> None:
    """This function will make the apps' login a member of usage_app; `db init` has to come first.

    `db init` sees to the logins that the settings name; the apps' login is not among them.
    """
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        group, login = sql.Identifier(Part.APP.group), sql.Identifier(Part.APP.login)
        connection.execute(sql.SQL("GRANT {} TO {}").format(group, login))
