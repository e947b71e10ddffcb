"""Forks while a connection is pooled; each of three processes reads its own tenant's rows 200 times.

Run by test_engines.py. Arguments: two tenants. One line of output per process.
"""

import os
import sys
import uuid

from sqlalchemy import Engine, select, text

from worker import db
from worker.database_url import Database
from worker.models.user_data import UserProfile

BACKEND = text("SELECT pg_backend_pid()")


def read(user: uuid.UUID, times: int) -> int:
    """How many of `times` answers were this tenant's one row; every other answer is somebody else's."""
    right = 0
    for _ in range(times):
        with db.user_data_session(user_id=user) as session:
            right += list(session.scalars(select(UserProfile.business_name))) == [str(user)]
    return right


def backend() -> int:
    with db.user_data_session(system=True) as session:
        return int(session.scalar(BACKEND) or 0)


def child(user: uuid.UUID, inherited: Engine, parents_backend: int) -> str:
    with inherited.connect() as connection:
        by_inherited = connection.scalar(BACKEND)
    right = read(user, 200)
    own = parents_backend not in (backend(), by_inherited)
    return (
        f"child: {right} answers right, {'backend of its own' if own else 'THE BACKEND OF ITS PARENT'}, "
        "also by the engine of its parent"
    )


def main() -> None:
    one, two = (uuid.UUID(argument) for argument in sys.argv[1:])
    engine = db.engine_for(Database.USER_DATA)
    before = backend()
    children = {}
    for user in (one, two):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            try:
                os.write(writing, child(user, engine, before).encode())
            finally:
                db.close_databases()
                os._exit(0)
        os.close(writing)
        children[pid] = reading
    right = read(one, 200)
    for pid in children:
        os.waitpid(pid, 0)
    same = backend() == before and right == 200
    sys.stdout.write(f"parent: {'one backend before and after' if same else f'CHANGED, {right} right'}\n")
    for reading in children.values():
        with os.fdopen(reading) as answer:
            sys.stdout.write(answer.read() + "\n")
    db.close_databases()


if __name__ == "__main__":
    main()
