"""Every example of docs/emitters.md runs as it stands, and what it sends arrives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.integration.emitted import ids_in

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "emitters.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
USER = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"

# What a framework does with the example, and how many events come of it.
DRIVERS = {
    "preload_app": (
        f'emitter.emit(user_id="{USER}", feature="web", tokens_used=1)\nworker_exit(None, None)\n',
        1,
    ),
    "celery": (f'write_post("{USER}")\ndeliver_usage()\n', 1),
    "fastapi": (
        "from fastapi.testclient import TestClient\n"
        f'with TestClient(app) as client:\n    assert client.post("/posts/{USER}").status_code == 200\n',
        1,
    ),
    "signal": ("", 2),
    "AsyncEmitter": ("", 2),
    "RecordingEmitter": (
        "import sys\nsys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', sys.argv[1]]))\n",
        0,
    ),
    "BufferedEmitter": ("", 1),
}


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_example(code: str, valkey: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
    name = next(word for word in DRIVERS if word in code)
    driver, count = DRIVERS[name]
    path = tmp_path / "test_example.py"
    path.write_text(code)
    (tmp_path / "driver.py").write_text(f"from test_example import *\n{driver}")
    done = subprocess.run(
        [sys.executable, "driver.py", str(path)],
        env={
            "REDIS_URL": valkey_url,
            "PATH": os.defpath,
            "PYTHONPATH": f"{ROOT}:{tmp_path}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(set(ids_in(valkey))) == count
