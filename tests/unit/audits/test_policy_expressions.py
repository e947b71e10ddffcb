"""The server's spelling of an expression against the declared one."""

from __future__ import annotations

import pytest

from worker.audits import rls_roles
from worker.models import policies

LIVE = (
    "(user_id = ( SELECT (NULLIF(current_setting('app.current_user_id'::text, true), ''::text))::uuid"
    ' AS "nullif"))'
)


class TestSameExpression:
    def test_knows_the_servers_spelling_of_what_is_declared(self) -> None:
        assert rls_roles.same_expression(LIVE, policies.tenant_expression("user_id"))
        assert rls_roles.same_expression("true", "true")
        assert rls_roles.same_expression(None, None)

    @pytest.mark.parametrize(
        "live",
        [
            None,
            "true",
            LIVE.replace("user_id =", "id ="),
            LIVE.replace("app.current_user_id", "app.user_id"),
            LIVE.replace("))", ") OR true)"),
            LIVE.replace("''::text", "'x'::text"),
            LIVE.replace(", true)", ")"),
        ],
    )
    def test_tells_another_one_apart(self, live: str | None) -> None:
        assert not rls_roles.same_expression(live, policies.tenant_expression("user_id"))
