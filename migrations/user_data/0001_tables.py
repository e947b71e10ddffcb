"""Tables of the tenants: profiles, projects, content assets, personas.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None

# Alembic's own table stays when everything else goes down, and so does the right to read it: every process
# asks it how far the database has come.
UPGRADE = """
REVOKE ALL ON alembic_version_user_data FROM PUBLIC;
GRANT SELECT ON alembic_version_user_data TO usage_worker, usage_auditor, usage_app;

CREATE TABLE user_profiles (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    business_name varchar(255),
    content_goals jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_user_profiles PRIMARY KEY (id),
    CONSTRAINT ck_user_profiles_content_goals_object CHECK (jsonb_typeof(content_goals) = 'object')
);
CREATE INDEX ix_user_profiles_user_id ON user_profiles (user_id);

CREATE TABLE user_projects (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    project_name varchar(255) NOT NULL,
    project_type varchar(64),
    project_metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_user_projects PRIMARY KEY (id),
    CONSTRAINT uq_user_projects_user_id_id UNIQUE (user_id, id),
    CONSTRAINT ck_user_projects_project_metadata_object CHECK (
        jsonb_typeof(project_metadata) = 'object'
    )
);

CREATE TABLE user_content_assets (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    project_id uuid,
    asset_type varchar(64) NOT NULL,
    content text NOT NULL,
    seo_data jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_user_content_assets PRIMARY KEY (id),
    CONSTRAINT fk_user_content_assets_user_id_project_id_user_projects FOREIGN KEY (user_id, project_id)
        REFERENCES user_projects (user_id, id) ON DELETE CASCADE,
    CONSTRAINT ck_user_content_assets_seo_data_object CHECK (jsonb_typeof(seo_data) = 'object')
);
CREATE INDEX ix_user_content_assets_user_id_project_id ON user_content_assets (user_id, project_id);

CREATE TABLE user_personas (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    persona_name varchar(255) NOT NULL,
    characteristics jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_user_personas PRIMARY KEY (id),
    CONSTRAINT ck_user_personas_characteristics_object CHECK (jsonb_typeof(characteristics) = 'object')
);
CREATE INDEX ix_user_personas_user_id ON user_personas (user_id);
"""

DOWNGRADE = """
DROP TABLE user_personas;
DROP TABLE user_content_assets;
DROP TABLE user_projects;
DROP TABLE user_profiles;
"""


def upgrade() -> None:
    for statement in UPGRADE.strip().removesuffix(";").split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWNGRADE.strip().removesuffix(";").split(";\n"):
        op.execute(statement)
