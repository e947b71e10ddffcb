"""Where the outside comes in: Celery tasks and the command line."""
