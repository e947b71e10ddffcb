"""Which acceptance tests this machine can run."""

from __future__ import annotations

import os
import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Left out, and counted as such; with USAGE_REQUIRE_CHROMIUM they stay and fail where no browser is found.
    if BROWSER or os.environ.get("USAGE_REQUIRE_CHROMIUM"):  # noqa: TID251  a switch of the test run, no setting
        return
    left_out = [item for item in items if item.get_closest_marker("browser")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def browser() -> str:
    """The program that draws pages, without a window."""
    if BROWSER is None:
        pytest.fail(f"none of {', '.join(BROWSERS)} is installed: apt-get install chromium", pytrace=False)
    return BROWSER
