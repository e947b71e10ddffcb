"""Every example of docs/events.md runs as it stands, and what it sends is good."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from producers._stream import Decoded, decode

TEXT = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SHELL = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)

# Does what redis-cli does with these arguments; redis-cli itself is not part of the installation.
REDIS_CLI = """#!{python}
import sys, redis
assert sys.argv[1] == "-u"
print(redis.Redis.from_url(sys.argv[2]).execute_command(*sys.argv[3:]))
"""


def judged(client: redis.Redis) -> list[Decoded]:
    found: list[Decoded] = []
    for key in ("usage:events:{0}", "usage:corrections:{0}"):
        entries: Any = client.xrange(key)
        for _, fields in entries:
            found += decode(fields[b"data"], correction="corrections" in key)
    return found


@pytest.mark.redis_compatible
class TestExamples:
    @pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
    def test_in_python(self, code: str, valkey: redis.Redis, valkey_url: str) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env={"REDIS_URL": valkey_url, "PATH": os.defpath},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        found = judged(valkey)
        assert found
        assert [one.detail for one in found if one.event is None] == []

    def test_with_redis_cli(self, valkey: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
        program = tmp_path / "redis-cli"
        program.write_text(REDIS_CLI.format(python=sys.executable))
        program.chmod(0o755)
        (code,) = SHELL
        done = subprocess.run(
            ["sh", "-euc", code],
            env={"REDIS_URL": valkey_url, "PATH": f"{tmp_path}:{os.defpath}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        (one,) = judged(valkey)
        assert one.detail is None
        assert one.event is not None
        assert one.event.tokens_used == 1267
