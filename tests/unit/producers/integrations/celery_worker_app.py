"""`celery -A tests.unit.producers.integrations.celery_worker_app worker` for test_celery.py."""

from producers import EmitterConfig
from tests.unit.producers.integrations import celery_tasks

app, usage = celery_tasks.make(EmitterConfig.from_env().redis_url)
