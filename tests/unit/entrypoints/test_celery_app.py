"""The configuration that was measured, and the table of timed tasks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import click
import pytest
from celery import Celery, current_app
from celery import _state as celery_state

from worker.entrypoints import celery_app, cli, schedule
from worker.settings import Settings, load_settings

ENVIRON = {
    "PLATFORM_DATABASE_URL": "postgresql://worker:secret@localhost:5432/alwrity_platform",
    "USER_DATA_DATABASE_URL": "postgresql://worker:secret@localhost:5432/alwrity_user_data",
    "REDIS_URL": "redis://default:secret@localhost:6379/0",
    "USAGE_STREAM_SHARDS": "4",
}


@pytest.fixture
def settings() -> Settings:
    return load_settings(ENVIRON)


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    before = current_app._get_current_object()
    app = celery_app.create_app(settings)
    app.loader.import_default_modules()
    app.finalize()
    yield app
    app.close()
    celery_state.set_default_app(before)
    before.set_current()


class TestCreateApp:
    def test_takes_json_only(self, app: Celery) -> None:
        assert app.conf.accept_content == app.conf.result_accept_content == ["json"]
        assert {app.conf.task_serializer, app.conf.result_serializer, app.conf.event_serializer} == {"json"}

    def test_notices_a_broker_that_fell_silent_and_survives_one_that_changes_its_role(
        self, app: Celery
    ) -> None:
        options = app.conf.broker_transport_options
        assert 0 < options["socket_timeout"] <= 10
        assert options["health_check_interval"] == 5
        assert app.conf.broker_channel_error_retry is True
        assert app.conf.broker_connection_max_retries is None

    def test_gives_no_task_to_two_workers_while_it_may_still_run(self, app: Celery) -> None:
        longest = max(task.time_limit or app.conf.task_time_limit for task in app.tasks.values())
        assert longest < app.conf.broker_transport_options["visibility_timeout"]

    def test_acknowledges_late_but_for_the_drain_and_the_ring(self, app: Celery) -> None:
        ours = {name: task for name, task in app.tasks.items() if not name.startswith("celery.")}
        early = {name for name, task in ours.items() if not task.acks_late}
        assert early == {"ingest.drain", "ingest.ring"}
        for name, task in ours.items():
            lost = task.reject_on_worker_lost
            assert (app.conf.task_reject_on_worker_lost if lost is None else lost) is (name not in early)

    def test_every_task_is_called_after_its_room_and_goes_to_the_rooms_queue(self, app: Celery) -> None:
        ours = {name for name in app.tasks if not name.startswith("celery.")}
        assert ours == {job.task for job in schedule.periodic_tasks(load_settings(ENVIRON))} | {
            "ingest.drain"
        }
        for name in ours:
            queue = app.amqp.router.route({}, name)["queue"].name
            assert queue == name.partition(".")[0]
        assert set(app.amqp.queues.consume_from) == {"ingest", "subscriptions", "audits", "pricing"}

    def test_leaves_two_children_for_the_other_rooms(self, app: Celery) -> None:
        assert app.conf.worker_concurrency == 4 + 2
        assert app.conf.worker_prefetch_multiplier == 1

    def test_the_ring_is_silent_and_the_drain_is_not(self, app: Celery) -> None:
        assert app.conf.worker_send_task_events is True
        assert app.conf.task_send_sent_event is False
        assert app.tasks["ingest.ring"].send_events is False
        assert app.tasks["ingest.drain"].send_events is True

    def test_strangers_among_the_arguments_are_ignored(self, app: Celery) -> None:
        for name, task in app.tasks.items():
            if not name.startswith("celery."):
                task.__header__(of_a_later_release=1)


class TestSchedule:
    def test_every_message_expires_before_its_period_is_over(self, settings: Settings) -> None:
        entries = schedule.beat_schedule(settings)
        assert set(entries) == {job.task for job in schedule.periodic_tasks(settings)}
        for job in schedule.periodic_tasks(settings):
            options = entries[job.task]["options"]
            assert isinstance(options, dict)
            assert 0 < options["expires"] < job.period.total_seconds()

    def test_everything_but_the_ring_claims_its_window(self, settings: Settings) -> None:
        assert [job.task for job in schedule.periodic_tasks(settings) if not job.claimed] == ["ingest.ring"]

    def test_the_periods_are_settings(self) -> None:
        changed = {"USAGE_RECONCILE_INTERVAL_SECONDS": "7", "USAGE_AUDIT_INTERVAL_SECONDS": "11"}
        periods = {
            job.task: job.period.total_seconds()
            for job in schedule.periodic_tasks(load_settings({**ENVIRON, **changed}))
        }
        assert (periods["subscriptions.reconcile"], periods["audits.rls"], periods["audits.pool"]) == (
            7,
            11,
            11,
        )


class TestCommands:
    @pytest.mark.parametrize("name", sorted(cli.COMMANDS))
    def test_each_has_its_module_and_explains_itself(self, name: str) -> None:
        found = importlib.import_module(f"worker.entrypoints.cli.{cli.COMMANDS[name][0]}").command
        assert isinstance(found, click.Command)
        assert found.help

    def test_reading_ones_answer_in_json(self) -> None:
        context = click.Context(cli.command)
        silent = set()
        for name in cli.COMMANDS:
            found = cli.command.get_command(context, name)
            assert found is not None
            each = found.commands.items() if isinstance(found, click.Group) else [("", found)]
            for verb, command in each:
                if not any("--json" in parameter.opts for parameter in command.params):
                    silent.add(f"{name} {verb}".strip())
        assert silent == {"db migrate", "db downgrade", "dev", "outbox ddl"}
