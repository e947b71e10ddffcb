# One image for the migration, the worker, beat and Flower. Build: docker build -t usage-worker .
FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE CHANGELOG.md ./
# Every file is checked against its hash in the lock; only then is anything installed, and only from those files.
RUN pip download --quiet --require-hashes --only-binary :all: -r requirements.lock -d /wheels
COPY producers producers
COPY worker worker
COPY migrations migrations
RUN python -m venv /opt/usage-worker \
 && /opt/usage-worker/bin/pip install --quiet --no-index --find-links /wheels ".[worker]"

FROM python:3.13-slim
# No home, no shell, no way up. Backups are taken beside the servers, where pg_dump of their version is.
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin usage
COPY --from=build /opt/usage-worker /opt/usage-worker
ENV PATH=/opt/usage-worker/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
CMD ["celery", "-A", "worker.app", "worker"]
