"""What the search in fuzz_decode.py came across, put through both decoders on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.fuzz.differential import LIMITS, PRICES, compare
from worker.ingest.plain import Decoder

CORPUS: Final = sorted((Path(__file__).parent / "corpus").iterdir())


def test_there_is_something_to_replay() -> None:
    assert len(CORPUS) > 20


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_replay(path: Path) -> None:
    data = path.read_bytes()
    decoder = Decoder(LIMITS, PRICES)
    # Twice: the second time all that is remembered is there.
    assert compare(data, decoder=decoder) == compare(data, decoder=decoder)
