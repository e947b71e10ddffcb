"""Who may do what on the platform: grants and row-level security, enabled and forced.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision: str | None = "0001"
branch_labels = None
depends_on = None

UPGRADE = """
REVOKE ALL ON users FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON users TO usage_worker;
GRANT SELECT ON users TO authenticated_users;
ALTER TABLE users ENABLE ROW LEVEL SECURITY;
ALTER TABLE users FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON users FOR ALL TO authenticated_users
    USING (id = (select nullif(current_setting('app.current_user_id', true), '')::uuid))
    WITH CHECK (id = (select nullif(current_setting('app.current_user_id', true), '')::uuid));
CREATE POLICY owner_all ON users FOR ALL TO usage_owner
    USING (true)
    WITH CHECK (true);
CREATE POLICY worker_all ON users FOR ALL TO usage_worker
    USING (true)
    WITH CHECK (true);

REVOKE ALL ON subscription_plans FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON subscription_plans TO usage_worker;
GRANT SELECT ON subscription_plans TO usage_auditor;
GRANT SELECT ON subscription_plans TO usage_app;
GRANT SELECT ON subscription_plans TO authenticated_users;

REVOKE ALL ON user_subscriptions FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON user_subscriptions TO usage_worker;
GRANT SELECT ON user_subscriptions TO authenticated_users;
ALTER TABLE user_subscriptions ENABLE ROW LEVEL SECURITY;
ALTER TABLE user_subscriptions FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON user_subscriptions FOR ALL TO authenticated_users
    USING (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid))
    WITH CHECK (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid));
CREATE POLICY owner_all ON user_subscriptions FOR ALL TO usage_owner
    USING (true)
    WITH CHECK (true);
CREATE POLICY worker_all ON user_subscriptions FOR ALL TO usage_worker
    USING (true)
    WITH CHECK (true);

REVOKE ALL ON subscription_changes FROM PUBLIC;
GRANT SELECT, INSERT ON subscription_changes TO usage_worker;
ALTER TABLE subscription_changes ENABLE ROW LEVEL SECURITY;
ALTER TABLE subscription_changes FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON subscription_changes FOR ALL TO authenticated_users
    USING (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid))
    WITH CHECK (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid));
CREATE POLICY owner_all ON subscription_changes FOR ALL TO usage_owner
    USING (true)
    WITH CHECK (true);
CREATE POLICY worker_all ON subscription_changes FOR ALL TO usage_worker
    USING (true)
    WITH CHECK (true);

REVOKE ALL ON platform_usage_logs FROM PUBLIC;
GRANT SELECT, INSERT ON platform_usage_logs TO usage_worker;
GRANT SELECT ON platform_usage_logs TO usage_auditor;
GRANT SELECT ON platform_usage_logs TO authenticated_users;
ALTER TABLE platform_usage_logs ENABLE ROW LEVEL SECURITY;
ALTER TABLE platform_usage_logs FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON platform_usage_logs FOR ALL TO authenticated_users
    USING (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid))
    WITH CHECK (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid));
CREATE POLICY owner_all ON platform_usage_logs FOR ALL TO usage_owner
    USING (true)
    WITH CHECK (true);
CREATE POLICY worker_all ON platform_usage_logs FOR ALL TO usage_worker
    USING (true)
    WITH CHECK (true);
CREATE POLICY auditor_read ON platform_usage_logs FOR SELECT TO usage_auditor
    USING (true);

REVOKE ALL ON usage_hourly FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON usage_hourly TO usage_worker;
GRANT SELECT ON usage_hourly TO usage_auditor;
GRANT SELECT ON usage_hourly TO authenticated_users;
ALTER TABLE usage_hourly ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_hourly FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON usage_hourly FOR ALL TO authenticated_users
    USING (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid))
    WITH CHECK (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid));
CREATE POLICY owner_all ON usage_hourly FOR ALL TO usage_owner
    USING (true)
    WITH CHECK (true);
CREATE POLICY worker_all ON usage_hourly FOR ALL TO usage_worker
    USING (true)
    WITH CHECK (true);
CREATE POLICY auditor_read ON usage_hourly FOR SELECT TO usage_auditor
    USING (true);

REVOKE ALL ON ingest_positions FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON ingest_positions TO usage_worker;
GRANT SELECT ON ingest_positions TO usage_auditor;

REVOKE ALL ON usage_dead_letters FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON usage_dead_letters TO usage_worker;
GRANT SELECT (
    id, stream, stream_id, shard, entry_index, raw_sha256, reason, event_id, user_id, target_id,
    received_at, stored_at, replayed_at, discarded_at, replay_count
) ON usage_dead_letters TO usage_auditor;
ALTER TABLE usage_dead_letters ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_dead_letters FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON usage_dead_letters FOR ALL TO authenticated_users
    USING (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid))
    WITH CHECK (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid));
CREATE POLICY owner_all ON usage_dead_letters FOR ALL TO usage_owner
    USING (true)
    WITH CHECK (true);
CREATE POLICY worker_all ON usage_dead_letters FOR ALL TO usage_worker
    USING (true)
    WITH CHECK (true);
CREATE POLICY auditor_read ON usage_dead_letters FOR SELECT TO usage_auditor
    USING (true);

REVOKE ALL ON audit_runs FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON audit_runs TO usage_worker;
GRANT SELECT, INSERT, UPDATE ON audit_runs TO usage_auditor;

REVOKE ALL ON audit_findings FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON audit_findings TO usage_worker;
GRANT SELECT, INSERT, UPDATE ON audit_findings TO usage_auditor;

REVOKE ALL ON job_runs FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE, DELETE ON job_runs TO usage_worker;
GRANT SELECT ON job_runs TO usage_auditor;
"""

DOWNGRADE = """
DROP POLICY tenant_isolation ON users;
DROP POLICY owner_all ON users;
DROP POLICY worker_all ON users;
ALTER TABLE users NO FORCE ROW LEVEL SECURITY;
ALTER TABLE users DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON users FROM usage_worker, authenticated_users;

REVOKE ALL ON subscription_plans FROM usage_worker, usage_auditor, usage_app, authenticated_users;

DROP POLICY tenant_isolation ON user_subscriptions;
DROP POLICY owner_all ON user_subscriptions;
DROP POLICY worker_all ON user_subscriptions;
ALTER TABLE user_subscriptions NO FORCE ROW LEVEL SECURITY;
ALTER TABLE user_subscriptions DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON user_subscriptions FROM usage_worker, authenticated_users;

DROP POLICY tenant_isolation ON subscription_changes;
DROP POLICY owner_all ON subscription_changes;
DROP POLICY worker_all ON subscription_changes;
ALTER TABLE subscription_changes NO FORCE ROW LEVEL SECURITY;
ALTER TABLE subscription_changes DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON subscription_changes FROM usage_worker;

DROP POLICY tenant_isolation ON platform_usage_logs;
DROP POLICY owner_all ON platform_usage_logs;
DROP POLICY worker_all ON platform_usage_logs;
DROP POLICY auditor_read ON platform_usage_logs;
ALTER TABLE platform_usage_logs NO FORCE ROW LEVEL SECURITY;
ALTER TABLE platform_usage_logs DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON platform_usage_logs FROM usage_worker, usage_auditor, authenticated_users;

DROP POLICY tenant_isolation ON usage_hourly;
DROP POLICY owner_all ON usage_hourly;
DROP POLICY worker_all ON usage_hourly;
DROP POLICY auditor_read ON usage_hourly;
ALTER TABLE usage_hourly NO FORCE ROW LEVEL SECURITY;
ALTER TABLE usage_hourly DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON usage_hourly FROM usage_worker, usage_auditor, authenticated_users;

REVOKE ALL ON ingest_positions FROM usage_worker, usage_auditor;

DROP POLICY tenant_isolation ON usage_dead_letters;
DROP POLICY owner_all ON usage_dead_letters;
DROP POLICY worker_all ON usage_dead_letters;
DROP POLICY auditor_read ON usage_dead_letters;
ALTER TABLE usage_dead_letters NO FORCE ROW LEVEL SECURITY;
ALTER TABLE usage_dead_letters DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON usage_dead_letters FROM usage_worker, usage_auditor;

REVOKE ALL ON audit_runs FROM usage_worker, usage_auditor;

REVOKE ALL ON audit_findings FROM usage_worker, usage_auditor;

REVOKE ALL ON job_runs FROM usage_worker, usage_auditor;
"""


def upgrade() -> None:
    for statement in UPGRADE.strip().removesuffix(";").split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWNGRADE.strip().removesuffix(";").split(";\n"):
        op.execute(statement)
