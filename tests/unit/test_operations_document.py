"""docs/operations.md: every failure has its paragraph, and every symptom is asserted on in a test."""

import re
from pathlib import Path

from worker.db import _failures

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")


def symptoms() -> list[str]:
    return re.findall(r"^> (.+)$", DOCUMENT, flags=re.M)


def text_of_the_tests() -> str:
    """Every other test, with strings that go on in the next line put together."""
    here = Path(__file__)
    paths = [path for path in sorted((REPOSITORY / "tests").rglob("test_*.py")) if path != here]
    sources = [path.read_text(encoding="utf-8") for path in paths]
    joined = re.sub(r"['\"]\s*\n\s*[rf]?['\"]", "", "\n".join(sources))
    return joined.replace("\\", "").replace(".*", "…")


class TestOperationsDocument:
    def test_has_every_failure_of_a_connection(self) -> None:
        problems = {problem for _, _, problem, _ in _failures._TABLE}
        # One paragraph for what is mended in the same way.
        together = {
            "the server does not admit this login from here without TLS": "does not admit this login",
            "the server has no database of this name, and it is never created silently": "no database of",
            "there is no network route to the host": "no route",
        }
        assert [problem for problem in problems if together.get(problem, problem) not in DOCUMENT] == []

    def test_every_symptom_is_provoked_in_a_test(self) -> None:
        source = text_of_the_tests()
        missing = [
            symptom
            for symptom in symptoms()
            if not all(part.strip(' "(),') in source for part in symptom.split("…"))
        ]
        assert missing == []

    def test_every_paragraph_has_a_symptom_and_a_next_step(self) -> None:
        for paragraph in re.split(r"^### ", DOCUMENT, flags=re.M)[1:]:
            title = paragraph.partition("\n")[0]
            assert re.search(r"^> ", paragraph, flags=re.M), title
            assert "Next step: " in paragraph, title
