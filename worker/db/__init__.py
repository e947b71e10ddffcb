"""The databases' front door: eight functions, two context managers, and the errors they raise.

`get_platform_db` and `get_user_data_db` are generators (FastAPI dependencies), `platform_session` and
`user_data_session` are context managers, `set_user_context` confines a Session to one user.
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
from worker.db._health import get_database_info, init_databases, test_connections
from worker.db._security import setup_row_level_security
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
    "Login",
    "PoolExhausted",
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
