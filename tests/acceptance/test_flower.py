"""Flower in a real browser: the worker, the drains, and what they counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from tests.fixtures.databases import Databases
from tests.fixtures.processes import Cli, StartWorker
from worker.dev import _processes
from worker.dev._processes import free_port, wait_until

USER = uuid.UUID("0192f0c1-5c43-7a52-9d0e-3f6b6f3f2a11")
LOGIN = "operator:a-long-password"


class Page:
    """A Flower that runs, and a browser that looks at it."""

    def __init__(self, browser: str, port: int, folder: Path) -> None:
        self.browser = browser
        self.port = port
        self.folder = folder

    def status(self, path: str, login: str | None = None) -> int:
        """What a program gets, with or without a login."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if login:
            request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310  loopback
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def look(self, path: str, picture: str) -> str:
        """Draws a page, keeps a screenshot of it, and returns its elements as the scripts left them."""
        dom = self._run("--dump-dom", path)
        self._run(f"--screenshot={self.folder / picture}", path)
        return dom

    def _run(self, action: str, path: str) -> str:
        return subprocess.run(
            [
                self.browser,
                *(
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--no-first-run",
                ),
                *("--window-size=1400,900", "--virtual-time-budget=5000"),
                f"--user-data-dir={self.folder / 'profile'}",
                action,
                f"http://{LOGIN}@127.0.0.1:{self.port}{path}",
            ],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.folder)},
        ).stdout


@pytest.fixture
def page(browser: str, environ: dict[str, str], guard: _processes.Guard, tmp_path: Path) -> Iterator[Page]:
    port = free_port()
    process = _processes.OwnedProcess(
        [
            *(sys.executable, "-m", "celery", "-A", "worker.app", "flower"),
            *("--address=127.0.0.1", f"--port={port}"),
        ],
        log=tmp_path / "flower.log",
        guard=guard,
        env={**environ, "FLOWER_BASIC_AUTH": LOGIN},
        cwd=tmp_path,
    )
    shown = Page(browser, port, tmp_path)
    assert wait_until(lambda: shown.status("/healthcheck") == 200, timeout=30), process.log_tail()
    yield shown
    process.stop()


@pytest.mark.browser
@pytest.mark.timeout(180)
class TestFlower:
    def test_shows_the_worker_its_drains_and_what_they_counted(
        self,
        page: Page,
        celery_worker: StartWorker,
        cli: Cli,
        databases: Databases,
        valkey: redis.Redis,
    ) -> None:
        worker = celery_worker()
        line = json.dumps({"user_id": str(USER), "feature": "chat", "tokens_used": 5})
        assert cli("emit", "--file", "-", stdin=f"{line}\n" * 3).code == 0
        with psycopg.connect(databases.platform.url("worker"), autocommit=True) as platform:
            query = "SELECT FROM ingest_positions WHERE accepted = 3 AND lease_until > clock_timestamp()"
            assert wait_until(lambda: bool(platform.execute(query).fetchall()), timeout=20), worker.log()
            epoch = "SELECT epoch FROM ingest_positions"
            counted_under = platform.execute(epoch).fetchall()
            # The drain ends some seconds after its first batch, and the next one takes the shard.
            assert wait_until(lambda: platform.execute(epoch).fetchall() != counted_under, timeout=20)

        assert page.status("/workers") == 401
        assert page.status("/workers", "operator:a-guess") == 401
        assert page.status("/api/workers") == 401

        workers = page.look("/workers", "workers.png")
        [name] = set(re.findall(r"[0-9a-f]{8}@[\w.-]+", workers))
        assert f"ready: {name}" in worker.log()
        assert "Online" in workers

        tasks = page.look("/tasks", "tasks.png")
        text = re.sub(r"<[^>]+>|\s+", " ", tasks)
        assert "ingest.drain" in text
        assert re.search(r"'accepted': 3\b", text.replace("&#x27;", "'").replace("&#39;", "'")), text[-3000:]
        for audit in ("audits.rls", "audits.pool", "subscriptions.reconcile"):
            assert audit in text
        # The rings and the waiting drains of a quiet system do not bury the rest.
        assert "ingest.ring" not in text
        for picture in ("workers.png", "tasks.png"):
            assert (page.folder / picture).read_bytes().startswith(b"\x89PNG")
            assert (page.folder / picture).stat().st_size > 10_000
