"""Who may do what with the tenants' data: grants and row-level security, enabled and forced.

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
REVOKE ALL ON user_profiles FROM PUBLIC;
GRANT SELECT ON user_profiles TO usage_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON user_profiles TO authenticated_users;
ALTER TABLE user_profiles ENABLE ROW LEVEL SECURITY;
ALTER TABLE user_profiles FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON user_profiles FOR ALL TO authenticated_users
    USING (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid))
    WITH CHECK (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid));
CREATE POLICY owner_all ON user_profiles FOR ALL TO usage_owner
    USING (true)
    WITH CHECK (true);
CREATE POLICY worker_all ON user_profiles FOR ALL TO usage_worker
    USING (true)
    WITH CHECK (true);

REVOKE ALL ON user_projects FROM PUBLIC;
GRANT SELECT ON user_projects TO usage_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON user_projects TO authenticated_users;
ALTER TABLE user_projects ENABLE ROW LEVEL SECURITY;
ALTER TABLE user_projects FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON user_projects FOR ALL TO authenticated_users
    USING (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid))
    WITH CHECK (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid));
CREATE POLICY owner_all ON user_projects FOR ALL TO usage_owner
    USING (true)
    WITH CHECK (true);
CREATE POLICY worker_all ON user_projects FOR ALL TO usage_worker
    USING (true)
    WITH CHECK (true);

REVOKE ALL ON user_content_assets FROM PUBLIC;
GRANT SELECT ON user_content_assets TO usage_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON user_content_assets TO authenticated_users;
ALTER TABLE user_content_assets ENABLE ROW LEVEL SECURITY;
ALTER TABLE user_content_assets FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON user_content_assets FOR ALL TO authenticated_users
    USING (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid))
    WITH CHECK (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid));
CREATE POLICY owner_all ON user_content_assets FOR ALL TO usage_owner
    USING (true)
    WITH CHECK (true);
CREATE POLICY worker_all ON user_content_assets FOR ALL TO usage_worker
    USING (true)
    WITH CHECK (true);

REVOKE ALL ON user_personas FROM PUBLIC;
GRANT SELECT ON user_personas TO usage_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON user_personas TO authenticated_users;
ALTER TABLE user_personas ENABLE ROW LEVEL SECURITY;
ALTER TABLE user_personas FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON user_personas FOR ALL TO authenticated_users
    USING (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid))
    WITH CHECK (user_id = (select nullif(current_setting('app.current_user_id', true), '')::uuid));
CREATE POLICY owner_all ON user_personas FOR ALL TO usage_owner
    USING (true)
    WITH CHECK (true);
CREATE POLICY worker_all ON user_personas FOR ALL TO usage_worker
    USING (true)
    WITH CHECK (true);
"""

DOWNGRADE = """
DROP POLICY tenant_isolation ON user_profiles;
DROP POLICY owner_all ON user_profiles;
DROP POLICY worker_all ON user_profiles;
ALTER TABLE user_profiles NO FORCE ROW LEVEL SECURITY;
ALTER TABLE user_profiles DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON user_profiles FROM usage_worker, authenticated_users;

DROP POLICY tenant_isolation ON user_projects;
DROP POLICY owner_all ON user_projects;
DROP POLICY worker_all ON user_projects;
ALTER TABLE user_projects NO FORCE ROW LEVEL SECURITY;
ALTER TABLE user_projects DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON user_projects FROM usage_worker, authenticated_users;

DROP POLICY tenant_isolation ON user_content_assets;
DROP POLICY owner_all ON user_content_assets;
DROP POLICY worker_all ON user_content_assets;
ALTER TABLE user_content_assets NO FORCE ROW LEVEL SECURITY;
ALTER TABLE user_content_assets DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON user_content_assets FROM usage_worker, authenticated_users;

DROP POLICY tenant_isolation ON user_personas;
DROP POLICY owner_all ON user_personas;
DROP POLICY worker_all ON user_personas;
ALTER TABLE user_personas NO FORCE ROW LEVEL SECURITY;
ALTER TABLE user_personas DISABLE ROW LEVEL SECURITY;
REVOKE ALL ON user_personas FROM usage_worker, authenticated_users;
"""


def upgrade() -> None:
    for statement in UPGRADE.strip().removesuffix(";").split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWNGRADE.strip().removesuffix(";").split(";\n"):
        op.execute(statement)
