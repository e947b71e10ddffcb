"""A local provider, an emitter that keeps, and clients of the OpenAI SDK, tracked and not."""

from collections.abc import Iterator

import openai
import pytest

from producers.integrations import track
from producers.testing import RecordingEmitter
from tests.unit.producers.integrations.openai_answers import ALICE
from tests.unit.producers.integrations.provider_server import Provider, provider_server


@pytest.fixture
def provider() -> Iterator[Provider]:
    with provider_server() as server:
        yield server


@pytest.fixture
def recording() -> RecordingEmitter:
    return RecordingEmitter()


@pytest.fixture
def plain(provider: Provider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="k", base_url=f"{provider.url}/v1", max_retries=2) as client:
        yield client


@pytest.fixture
def client(plain: openai.OpenAI, recording: RecordingEmitter) -> openai.OpenAI:
    return track(plain, emitter=recording, user_id=ALICE, feature="chat", provider="openai", strict=True)
