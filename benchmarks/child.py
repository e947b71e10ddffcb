"""A process of the benchmark's own: it takes orders as lines of JSON and answers each with one line.

Producer and drain each have a process, so that neither waits for the other's interpreter and the CPU time of
each is known. A child ends when its orders do, so also when the benchmark is killed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Self

ROOT = Path(__file__).resolve().parents[1]
Answer = dict[str, Any]
Handler = Callable[..., Answer]
"""Called with the order's fields; `stopped` is an event that the parent can set meanwhile."""


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """This function will add to the settings what any process needs."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        **environ,
    }


class Child:
    """One running `python -m MODULE`; a context manager."""

    def __init__(self, module: str, environ: Mapping[str, str]) -> None:
        """Starts it and waits until it is ready."""
        self._module = module
        self._process = subprocess.Popen(  # noqa: S603  our own modules
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment(environ),
            text=True,
            start_new_session=True,
        )
        self.answer()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, order: str, **fields: object) -> None:
        """This function will give an order and not wait."""
        stdin = self._pipe(self._process.stdin)
        stdin.write(json.dumps({"order": order, **fields}) + "\n")
        stdin.flush()

    def answer(self) -> Answer:
        """This function will wait for the next answer; raises SystemExit when the child died."""
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise SystemExit(f"{self._module} ended with {self._process.wait()}; its message stands above")
        answer: Answer = json.loads(line)
        return answer

    def ask(self, order: str, **fields: object) -> Answer:
        """This function will give an order and wait for its answer."""
        self.send(order, **fields)
        return self.answer()

    def close(self) -> None:
        """This function will end the process."""
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe(self._process.stdout).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _pipe(stream: IO[str] | None) -> IO[str]:
        if stream is None:
            raise SystemExit("the child was started without pipes")
        return stream


def serve(handlers: Mapping[str, Handler]) -> None:
    """This function will answer the parent's orders until there are no more.

    `stop` is an order of its own: it sets the event that the running handler was given, and has no answer.
    """
    stopped = threading.Event()
    orders: list[Answer | None] = []
    some = threading.Condition()

    def listen() -> None:
        for line in sys.stdin:
            order = json.loads(line)
            if order["order"] == "stop":
                stopped.set()
                continue
            with some:
                orders.append(order)
                some.notify()
        stopped.set()
        with some:
            orders.append(None)
            some.notify()

    threading.Thread(target=listen, daemon=True).start()
    _say({"ready": True})
    while True:
        with some:
            some.wait_for(lambda: bool(orders))
            order = orders.pop(0)
        if order is None:
            return
        stopped.clear()
        answer = handlers[order.pop("order")](stopped=stopped, **order)
        _say(answer)


def _say(answer: Answer) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
