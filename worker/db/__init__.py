"""The databases' front door: eight functions, two context managers, and the errors they raise.

| name | gives |
|---|---|
| `get_platform_db()`, `get_user_data_db()` | generators of a Session (FastAPI); the caller commits |
| `platform_session()`, `user_data_session()` | context managers: commit, or roll back on an error |
| `set_user_context(user_id, session)` | confines the Session to one user, transaction by transaction |
| `test_connections()` | `{"platform": ConnectionReport, "user_data": ConnectionReport}` |
| `get_database_info()` | `{"platform": DatabaseInfo, "user_data": DatabaseInfo}` |
| `setup_row_level_security()` | makes policies and grants equal to the declared ones: a SecurityReport |
| `init_databases()` | None, once both are proved reachable, distinct and at migration head |
| `close_databases()` | None; the next use opens new connections |

Settings come from `configure(settings)`, or from the environment at the first use.
"""

from worker.db._engines import (
    Login,
    close_databases,
    configure,
    engine_for,
    set_application_role,
    use_worker_pool,
)
from worker.db._failures import PoolExhausted
from worker.db._health import (
    ConnectionReport,
    DatabaseInfo,
    get_database_info,
    init_databases,
    test_connections,
)
from worker.db._security import SecurityReport, setup_row_level_security
from worker.db._sessions import (
    UserContextMissing,
    UserContextRefused,
    get_platform_db,
    get_user_data_db,
    platform_session,
    set_user_context,
    user_data_session,
)

__all__ = [
    "ConnectionReport",
    "DatabaseInfo",
    "Login",
    "PoolExhausted",
    "SecurityReport",
    "UserContextMissing",
    "UserContextRefused",
    "close_databases",
    "configure",
    "engine_for",
    "get_database_info",
    "get_platform_db",
    "get_user_data_db",
    "init_databases",
    "platform_session",
    "set_application_role",
    "set_user_context",
    "setup_row_level_security",
    "test_connections",
    "use_worker_pool",
    "user_data_session",
]
