"""Who uses what, for everything that runs in a `with` block: the call sites inside need not know the user."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from uuid import UUID

Feature = str | Callable[[], str | None] | None


@dataclass(frozen=True, slots=True)
class Around:
    """What the `usage_context` around a call says."""

    user_id: UUID | str | None = None
    clerk_id: str | None = None
    given_feature: Feature = None

    @property
    def user(self) -> str | None:
        """The user's id, of either kind."""
        user = self.user_id or self.clerk_id
        return None if user is None else str(user)

    @property
    def feature(self) -> str | None:
        """The feature, looked up now where it was given as a function."""
        return self.given_feature() if callable(self.given_feature) else self.given_feature


_NOTHING = Around()
_around: ContextVar[Around] = ContextVar("usage_context", default=_NOTHING)


def current_usage() -> Around:
    """This function will return what the innermost `usage_context` says; nothing is a value too."""
    return _around.get()


@contextmanager
def usage_context(
    *,
    user_id: UUID | str | None = None,
    clerk_id: str | None = None,
    feature: Feature = None,
    inherit: bool = True,
) -> Iterator[None]:
    """This function will say for whom and for what everything in its block is used.

    Tasks that asyncio starts there see it, threads that the app starts itself do not.

    What is not given is taken from the block around it, unless `inherit` is false. A `feature` that is a
    function is called when an event needs it.
    """
    outer = _around.get() if inherit else _NOTHING
    has_user = user_id is not None or clerk_id is not None
    token = _around.set(
        Around(
            user_id if has_user else outer.user_id,
            clerk_id if has_user else outer.clerk_id,
            feature if feature is not None else outer.given_feature,
        )
    )
    try:
        yield
    finally:
        _around.reset(token)
