"""The examples at wire level of docs/events.md, as they stand: the right shard, and a good event."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from producers._stream import decode, shard_of

TEXT = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
SECTION = TEXT.split("\n## Examples on the wire\n")[1].split("\n## ")[0]
USER = "7f1c3a52-0a5e-4c43-9d6c-3f6b7f1f0a11"
SHARDS = 7
STREAM = "acme:events"

# Where redis-cli is not installed: what it does with these arguments.
REDIS_CLI = """#!{python}
import sys, redis
assert sys.argv[1] == "-u"
print(redis.Redis.from_url(sys.argv[2]).execute_command(*sys.argv[3:]))
"""
# What the example needs of ioredis, without the package: one connection, `xadd` and `quit`.
IOREDIS = """
import { connect } from "node:net";
export default class Redis {
  constructor(text) {
    const url = new URL(text);
    this.socket = connect(Number(url.port), url.hostname);
    const login = [decodeURIComponent(url.username), decodeURIComponent(url.password)];
    this.ready = login[1] ? this.call(["AUTH", ...login]) : Promise.resolve();
  }
  call(words) {
    const packed = words.map((word) => `$${Buffer.byteLength(word)}\\r\\n${word}\\r\\n`).join("");
    this.socket.write(`*${words.length}\\r\\n${packed}`);
    return new Promise((resolve, reject) =>
      this.socket.once("data", (reply) => (reply[0] === 45 ? reject(new Error(String(reply))) : resolve())),
    );
  }
  async xadd(...words) {
    await this.ready;
    return this.call(["XADD", ...words]);
  }
  async quit() {
    this.socket.end();
  }
}
"""


def block(language: str) -> str:
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    return str(code)


def run(command: list[str], url: str, folder: Path) -> None:
    done = subprocess.run(
        command,
        env={
            "REDIS_URL": url,
            "USAGE_STREAM": STREAM,
            "USAGE_STREAM_SHARDS": str(SHARDS),
            "PATH": f"{folder}:{os.defpath}:/usr/local/bin",
        },
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # redis-cli warns of a password in its arguments, and the test's server has one.
    complaints = [
        line for line in done.stderr.splitlines() if not line.startswith("Warning: Using a password")
    ]
    assert (done.returncode, complaints) == (0, [])


def assert_one_good_event(client: redis.Redis) -> None:
    """On the shard of its user, and nowhere else."""
    names: Any = client.keys("*")
    assert names == [f"{STREAM}:{{{shard_of(USER, SHARDS)}}}".encode()]
    entries: Any = client.xrange(names[0])
    ((_, fields),) = entries
    (one,) = decode(fields[b"data"])
    assert one.event is not None, one.detail
    assert (one.event.tokens_used, str(one.event.cost_usd)) == (1267, "0.000394800000")


@pytest.mark.redis_compatible
class TestExamples:
    def test_the_shard_is_not_the_first_one(self) -> None:
        """Otherwise an example that cannot count would pass."""
        assert shard_of(USER, SHARDS) != 0

    def test_redis_cli(self, valkey: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
        if shutil.which("redis-cli") is None:
            program = tmp_path / "redis-cli"
            program.write_text(REDIS_CLI.format(python=sys.executable), encoding="utf-8")
            program.chmod(0o755)
        run(["sh", "-euc", block("bash")], valkey_url, tmp_path)
        assert_one_good_event(valkey)

    def test_python(self, valkey: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
        run([sys.executable, "-W", "error", "-c", block("python")], valkey_url, tmp_path)
        assert_one_good_event(valkey)

    def test_node(self, valkey: redis.Redis, valkey_url: str, tmp_path: Path) -> None:
        node = shutil.which("node")
        probe = ["-e", "process.exit(require('zlib').crc32 ? 0 : 1)"]
        if node is None or subprocess.run([node, *probe], check=False).returncode:
            pytest.skip("needs Node 20.15 or newer")
        module = tmp_path / "node_modules" / "ioredis"
        module.mkdir(parents=True)
        (module / "package.json").write_text('{"name": "ioredis", "type": "module", "main": "index.js"}')
        (module / "index.js").write_text(IOREDIS, encoding="utf-8")
        (tmp_path / "example.mjs").write_text(block("js"), encoding="utf-8")
        run([node, "example.mjs"], valkey_url, tmp_path)
        assert_one_good_event(valkey)
