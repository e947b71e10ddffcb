"""docker-compose.yml without an engine: its schema, its secrets, and its commands, run as they stand."""

from __future__ import annotations

import json
import re
import secrets
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import yaml

from worker.dev import _processes, servers
from worker.dev._processes import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
BIN = Path(sys.executable).parent
VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>[A-Z_]+)(?::(?P<how>[?-])(?P<words>[^}]*))?\}")


class VariableMissing(Exception):
    """What Compose says and stops with."""


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """What Compose makes of it: ${NAME:?words} stops without NAME, ${NAME:-words} has a default, $$ is $."""

    def value(match: re.Match[str]) -> str:
        name, how, words = match["name"], match["how"], match["words"]
        if found := variables.get(name):
            return found
        if how == "-":
            return str(words)
        raise VariableMissing(f"{name}: {words}")

    return VARIABLE.sub(value, text).replace("$$", "$")


def required(text: str) -> set[str]:
    """The variables without which Compose stops."""
    return {match["name"] for match in VARIABLE.finditer(text) if match["how"] == "?"}


def secrets_for(text: str) -> dict[str, str]:
    """What an operator writes into .env."""
    made = {name: secrets.token_hex(16) for name in required(text)}
    return {**made, "FLOWER_BASIC_AUTH": f"operator:{made['FLOWER_BASIC_AUTH']}"}


@pytest.fixture(scope="module")
def text() -> str:
    return FILE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def variables(text: str) -> dict[str, str]:
    return secrets_for(text)


@pytest.fixture(scope="module")
def compose(text: str, variables: Mapping[str, str]) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(interpolated(text, variables))
    return document


class TestFile:
    def test_is_what_the_compose_specification_allows(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_a_missing_password_stops_it_with_its_name(self, text: str, variables: Mapping[str, str]) -> None:
        assert len(required(text)) == 6
        for name in required(text):
            with pytest.raises(VariableMissing, match=name):
                interpolated(text, {other: value for other, value in variables.items() if other != name})

    def test_every_variable_is_explained_at_its_head(self, text: str) -> None:
        head = text[: text.index("\nname:")]
        assert {match["name"] for match in VARIABLE.finditer(text)} == set(
            re.findall(r"\b[A-Z_]{8,}\b", head)
        )

    def test_holds_no_secret_of_its_own(self, text: str) -> None:
        document = yaml.safe_load(text)
        given = {
            (name, variable): str(value)
            for name, service in document["services"].items()
            for variable, value in service.get("environment", {}).items()
        }
        secret = {
            where: value
            for where, value in given.items()
            if re.search(r"PASSWORD$|CLI_AUTH$|BASIC_AUTH$", where[1])
        }
        assert len(secret) >= 10
        assert {where for where, value in secret.items() if not VARIABLE.fullmatch(value)} == set()
        in_urls = [
            password for value in given.values() for password in re.findall(r"://[^:/]+:([^@]+)@", value)
        ]
        assert len(in_urls) >= 10
        assert [password for password in in_urls if not VARIABLE.fullmatch(password)] == []
        configured = document["configs"]["valkey"]["content"]
        [password] = re.findall(r"^requirepass (.*)$", configured, re.MULTILINE)
        assert VARIABLE.fullmatch(password)
        logins = document["configs"]["logins"]["content"]
        assert re.findall(r"PASSWORD (\S+);", logins) == [":'owner'", ":'worker'", ":'auditor'"]

    def test_has_all_parts_of_the_product(self, compose: dict[str, Any]) -> None:
        parts = {"platform-db", "user-data-db", "valkey", "migrate", "worker", "beat", "flower"}
        assert set(compose["services"]) == parts

    def test_everything_waits_for_what_it_needs_and_says_whether_it_is_well(
        self, compose: dict[str, Any]
    ) -> None:
        services = compose["services"]
        for name, service in services.items():
            assert ("healthcheck" in service) == (name != "migrate")
        for name in ("worker", "beat", "flower"):
            assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
            assert services[name]["depends_on"]["valkey"] == {"condition": "service_healthy"}
        for name in ("platform-db", "user-data-db"):
            assert services["migrate"]["depends_on"][name] == {"condition": "service_healthy"}
        # Only the stream and Flower are reached from outside, and only from this machine.
        ports = [port for service in services.values() for port in service.get("ports", [])]
        assert len(ports) == 2
        assert all(port.startswith("127.0.0.1:") for port in ports)

    def test_no_program_of_ours_runs_as_root_or_knows_the_owner(self, compose: dict[str, Any]) -> None:
        dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
        assert re.search(r"^USER 10001", dockerfile, re.MULTILINE)
        assert dockerfile.index("USER 10001") < dockerfile.index("CMD ")
        assert "--require-hashes" in dockerfile
        for name in ("worker", "beat", "flower"):
            service = compose["services"][name]
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert not [variable for variable in service["environment"] if "OWNER" in variable]

    def test_the_image_is_given_nothing_but_what_its_dockerfile_copies(self) -> None:
        dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
        lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
        assert "*" in lines
        copied: set[str] = set()
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
            copied |= set(sources.split())
        assert copied == allowed
        assert all((ROOT / name).exists() for name in copied - {"LICENSE"})


@dataclass(frozen=True)
class Stack:
    """The services of the file, on servers of the test's own."""

    compose: Mapping[str, Any]
    addresses: Mapping[str, str]
    folder: Path
    guard: _processes.Guard

    def environment(self, service: str) -> dict[str, str]:
        """A service's own environment; only where its names of hosts lead is this machine's."""
        own = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(self.folder), "HOSTNAME": socket.gethostname()}
        for name, value in self.compose["services"][service]["environment"].items():
            for host, address in self.addresses.items():
                value = value.replace(f"@{host}/", f"@{address}/")
            own[name] = value
        return own

    def command(self, service: str) -> list[str]:
        """The command as it stands in the file."""
        return [str(word) for word in self.compose["services"][service]["command"]]

    def run(self, service: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end in a service's environment."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]] if (BIN / command[0]).exists() else command,
            env=self.environment(service),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def healthcheck(self, service: str) -> subprocess.CompletedProcess[str]:
        """Runs a service's health check as Compose does."""
        how, *words = self.compose["services"][service]["healthcheck"]["test"]
        return self.run(service, ["/bin/sh", "-c", words[0]] if how == "CMD-SHELL" else words)

    def start(self, service: str, *more: str) -> _processes.OwnedProcess:
        """Starts a service's command; `more` words are added at its end."""
        command = self.command(service)
        return _processes.OwnedProcess(
            [BIN / command[0], *command[1:], *more],
            log=self.folder / f"{service}.log",
            guard=self.guard,
            env=self.environment(service),
            cwd=self.folder,
        )


@pytest.fixture
def stack(
    compose: dict[str, Any], variables: dict[str, str], guard: _processes.Guard, tmp_path: Path
) -> Iterator[Stack]:
    addresses = {}
    with ExitStack() as running:
        for service in ("platform-db", "user-data-db"):
            settings = compose["services"][service]["environment"]
            server = running.enter_context(servers.PostgresServer(durable=False, max_connections=100))
            _prepare(server, settings["POSTGRES_DB"], settings, compose["configs"]["logins"]["content"])
            addresses[f"{service}:5432"] = f"127.0.0.1:{server.port}"
        lines = compose["configs"]["valkey"]["content"].splitlines()
        wanted = dict(line.split(maxsplit=1) for line in lines)
        password = wanted.pop("requirepass")
        assert password == variables["VALKEY_PASSWORD"]
        for place in ("dir", "port"):
            del wanted[place]
        valkey = running.enter_context(servers.ValkeyServer(settings=wanted, password=password))
        addresses["valkey:6379"] = re.sub(r"^.*@|/\d+$", "", valkey.url())
        yield Stack(compose, addresses, tmp_path, guard)


def _prepare(server: servers.PostgresServer, name: str, settings: Mapping[str, str], logins: str) -> None:
    """What the image of PostgreSQL does at its first start: the database, then the mounted file."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    file = server.place("10-logins.sql", logins.encode())
    subprocess.run(
        [server.bin / "psql", "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "-f", file, server.url(name)],
        env={**settings, "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )


@pytest.mark.timeout(180)
class TestCommands:
    def test_every_one_of_them_does_its_work(self, stack: Stack) -> None:
        migrated = stack.run("migrate", stack.command("migrate"))
        assert migrated.returncode == 0, migrated.stderr
        worker, beat = stack.start("worker"), stack.start("beat")
        port = free_port()
        # Inside its container Flower has port 5555; here another program may have it.
        assert "--port=5555" in stack.command("flower")
        flower = stack.start("flower", f"--port={port}")
        try:
            url = stack.environment("worker")["PLATFORM_DATABASE_URL"]
            with psycopg.connect(url, autocommit=True) as platform:
                jobs = "SELECT job FROM job_runs WHERE finished_at IS NOT NULL"
                assert wait_until(lambda: len(platform.execute(jobs).fetchall()) == 4, timeout=40), (
                    worker.log.read_text(),
                    beat.log.read_text(),
                )
                line = {
                    "user_id": "0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11",
                    "feature": "chat",
                    "tokens_used": 5,
                }
                file = stack.folder / "events.jsonl"
                file.write_text(json.dumps(line), encoding="utf-8")
                sent = stack.run("worker", ["usage-worker", "emit", "--file", str(file)])
                assert sent.returncode == 0, sent.stderr
                rows = "SELECT FROM platform_usage_logs"
                assert wait_until(lambda: len(platform.execute(rows).fetchall()) == 1, timeout=20)
                owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'platform_usage_logs'"
                assert platform.execute(owner).fetchall() == [("usage_owner",)]
            for service in ("worker", "beat"):
                # The node is named after the container; here after this machine.
                checked = stack.healthcheck(service)
                if service == "worker":
                    assert (
                        'celery@$HOSTNAME"' in stack.compose["services"]["worker"]["healthcheck"]["test"][1]
                    )
                    continue
                assert checked.returncode == 0, checked.stderr
            audits = stack.run("worker", ["usage-worker", "audit", "rls", "--json"])
            assert audits.returncode == 0, audits.stdout
            assert wait_until(lambda: _answers(port), timeout=30), flower.log_tail()
        finally:
            for process in (worker, beat, flower):
                process.stop()
        assert "Traceback" not in worker.log.read_text() + beat.log.read_text()

    def test_the_stream_server_is_configured_to_keep_what_it_is_given(self, stack: Stack) -> None:
        url = stack.environment("worker")["REDIS_URL"]
        client = redis.Redis.from_url(url)
        known: Any = client.config_get("*")
        client.close()
        wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        assert {name: known[name] for name in wanted} == wanted


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
