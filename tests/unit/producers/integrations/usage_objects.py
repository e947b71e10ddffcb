"""Real usage objects of providers: what each means in tokens and units, and what it cost.

`source` says where the object is from: the provider's page or a recorded answer; "constructed" where the
figures are ours, for a boundary that nobody has published. `cost` is computed by hand from the provider's
price page, the page and date being those of `price` in the data of genai-prices 0.2.3; `reported` is what the
provider itself says. A `cost` of None is unpriced.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

NOVEMBER: Final = datetime(2026, 11, 1, 12, tzinfo=UTC)
CASSETTES: Final = (
    "pydantic-ai's recorded answers, in pydantic/genai-prices tests/dataset/usages.json @016961828: "
)
RECORDED: Final = "pydantic/pydantic-ai tests/models/cassettes: "
GENAI_TESTS: Final = "pydantic/genai-prices tests/test_extract_usage.py @02c263aae"
CONSTRUCTED: Final = "constructed: "

PRICE_PAGES: Final = {
    "anthropic": "https://www.anthropic.com/pricing#api",
    "aws": "https://aws.amazon.com/bedrock/pricing/",
    "azure": "https://azure.microsoft.com/en-us/pricing/details/cognitive-services/openai-service/#pricing",
    "cohere": "https://cohere.com/pricing",
    "deepseek": "https://api-docs.deepseek.com/quick_start/pricing",
    "google": "https://ai.google.dev/gemini-api/docs/pricing",
    "groq": "https://console.groq.com/docs/models",
    "mistral": "https://mistral.ai/pricing/api",
    "moonshotai": "https://platform.kimi.ai/docs/pricing/chat.md",
    "openai": "https://developers.openai.com/api/docs/pricing",
    "openrouter": "https://openrouter.ai/models",
    "perplexity": "https://docs.perplexity.ai/docs/getting-started/pricing",
    "x-ai": "https://docs.x.ai/docs/models",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One object; `read`, `write` and `reasoning` are None where it does not say."""

    name: str
    body: Mapping[str, Any]
    source: str
    given: int | None
    made: int | None
    read: int | None = None
    write: int | None = None
    reasoning: int | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    price: str | None = None
    """Provider, model and date of the price, as genai-prices 0.2.3 names them."""
    cost: str | None = None
    """In US dollars; prices are per million tokens, hence the 1e6."""
    reported: str | None = None
    provider: str | None = None
    """Given to `usage_of`, where the object does not tell it."""
    model: str | None = None
    """As `provider`."""
    tier: str = ""
    at: datetime = NOVEMBER

    @property
    def dollars(self) -> Decimal | None:
        """The cost at twelve places."""
        if self.cost is None:
            return None
        exact = _value(ast.parse(self.cost, mode="eval").body, self.cost)
        return exact.quantize(Decimal(1).scaleb(-12), rounding=ROUND_HALF_EVEN)


_OPERATIONS: Final[Mapping[type, Callable[[Decimal, Decimal], Decimal]]] = {
    ast.Add: operator.add,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _value(node: ast.expr, text: str) -> Decimal:
    """The sums and products of a formula, in Decimal: each number as it is spelled."""
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left, text), _value(node.right, text))
    return Decimal(ast.get_source_segment(text, node) or "")
