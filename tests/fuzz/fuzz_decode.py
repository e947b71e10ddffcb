"""Coverage-guided search for bytes on which the fast decoder and the contract disagree.

    python tests/fuzz/fuzz_decode.py -max_total_time=60

Needs atheris (in `dev`, on Linux x86_64). What it finds belongs into tests/fuzz/corpus, which
test_corpus.py replays everywhere. Inputs are mutated as bytes, and every other time as the members of an
event, so that the search does not spend itself on commas.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any, Final

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]  # only where it has wheels

ROOT: Final = Path(__file__).resolve().parents[2]
CORPUS: Final = ROOT / "tests" / "fuzz" / "corpus"
FOUND: Final = ROOT / "var" / "fuzz"
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["producers", "worker.ingest"]):
    from tests.fuzz import differential
    from worker.ingest.plain import Decoder

DECODER: Final = Decoder(differential.LIMITS, differential.PRICES)
VALUES: Final[tuple[Any, ...]] = (
    0, 1, -1, 2**31, 10**9, 10**9 + 1, 2**63, 1.5, 1.0, 1e300, 5e-324, True, None, "", " ", "0", "1e-7", "-0",
    "0.000000000001", "1000000", "nan", "2026-01-31T09:30:00Z", "2026-01-31T09:30:00.1234567+00:00", "ok", [],
    {}, {"a": 1}, {"a": 0.1, "b": "x"}, {"token": "x"}, {"_repaired": ["size"]}, {"a": {"b": 1}}, "\u00e9",
    "\u2028", "00000000-0000-0000-0000-000000000000", "018F3C1A-7B1C-7D3E-9A55-0123456789AB",
)  # fmt: skip
NAMES: Final = (
    "v", "event_id", "user_id", "clerk_id", "feature", "provider", "model", "input_tokens", "output_tokens",
    "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "tokens_used", "cost_usd", "occurred_at",
    "duration_ms", "status", "metadata", "hold_id", "producer_id", "seq", "corrects", "void", "other",
)  # fmt: skip


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """This function will change one member of an event, or a few bytes of anything."""
    choice = random.Random(seed)  # noqa: S311  a search, not a secret
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    target = choice.choice(event) if isinstance(event, list) and event else event
    if not isinstance(target, dict) or choice.random() < 0.5:
        return bytes(atheris.Mutate(data, max_size))
    name = choice.choice(NAMES)
    action = choice.randrange(4)
    if action == 0:
        target.pop(name, None)
    elif action == 1:
        target[name] = choice.choice(VALUES)
    elif action == 2 and name in target and isinstance(target[name], str):
        changed = bytes(atheris.Mutate(target[name].encode("utf-8", "surrogatepass"), 60))
        target[name] = changed.decode("utf-8", "replace")
    else:
        members = list(target.items())
        choice.shuffle(members)
        target.clear()
        target.update(members)
    separators = (",", ":") if choice.random() < 0.8 else (", ", ": ")
    result = json.dumps(event, separators=separators, ensure_ascii=False).encode("utf-8", "replace")
    return result[:max_size]


def test_one_input(data: bytes) -> None:
    """This function will raise where the two ways disagree, or where either fails."""
    differential.compare(data, decoder=DECODER)
    differential.compare_together(data.split(b"|"), decoder=DECODER)


def main() -> None:
    """This function will search until the time or the number of runs given by libFuzzer's options is up."""
    arguments = [*sys.argv, "-max_len=4096", f"-artifact_prefix={CORPUS}/found-"]
    if not any(not one.startswith("-") for one in sys.argv[1:]):
        # New inputs go to the first folder; what is worth keeping is merged into the second by hand.
        FOUND.mkdir(parents=True, exist_ok=True)
        arguments += [str(FOUND), str(CORPUS)]
    atheris.Setup(arguments, test_one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
