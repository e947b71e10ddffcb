"""The user-data database: what tenants own. They read and write it themselves, each only their own rows."""

from __future__ import annotations

import uuid

from sqlalchemy import ForeignKeyConstraint, Index, MetaData, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column  # noqa: TID251  the user data's one base

from worker.models.types import (
    NAMING_CONVENTION,
    Id,
    JsonObjectOrEmpty,
    Ref,
    Stamp,
    Words,
    json_object,
)


class UserDataBase(DeclarativeBase):
    """The declarative base of the user-data database; it shares nothing with the platform's."""

    metadata = MetaData(naming_convention=dict(NAMING_CONVENTION))


class UserProfile(UserDataBase):
    """Who a tenant is to the product."""

    __tablename__ = "user_profiles"
    __table_args__ = (json_object("content_goals"), Index(None, "user_id"))

    id: Mapped[Id]
    user_id: Mapped[Ref]
    business_name: Mapped[str | None] = mapped_column(String(255))
    content_goals: Mapped[JsonObjectOrEmpty]
    created_at: Mapped[Stamp]
    updated_at: Mapped[Stamp]


class UserProject(UserDataBase):
    """A project of a tenant."""

    __tablename__ = "user_projects"
    # Leads with user_id, so it also serves the policy; assets point at this pair, so that an asset can never
    # hang on another tenant's project (a foreign key is checked without row-level security).
    __table_args__ = (UniqueConstraint("user_id", "id"), json_object("project_metadata"))

    id: Mapped[Id]
    user_id: Mapped[Ref]
    project_name: Mapped[str] = mapped_column(String(255))
    project_type: Mapped[str | None] = mapped_column(String(64))
    project_metadata: Mapped[JsonObjectOrEmpty]
    created_at: Mapped[Stamp]
    updated_at: Mapped[Stamp]


class UserContentAsset(UserDataBase):
    """A piece of content; it goes when its project goes, and may stand without one."""

    __tablename__ = "user_content_assets"
    __table_args__ = (
        ForeignKeyConstraint(
            ["user_id", "project_id"], ["user_projects.user_id", "user_projects.id"], ondelete="CASCADE"
        ),
        json_object("seo_data"),
        Index(None, "user_id", "project_id"),
    )

    id: Mapped[Id]
    user_id: Mapped[Ref]
    project_id: Mapped[uuid.UUID | None]
    asset_type: Mapped[str] = mapped_column(String(64))
    content: Mapped[Words]
    seo_data: Mapped[JsonObjectOrEmpty]
    created_at: Mapped[Stamp]
    updated_at: Mapped[Stamp]


class UserPersona(UserDataBase):
    """A voice that a tenant writes in."""

    __tablename__ = "user_personas"
    __table_args__ = (json_object("characteristics"), Index(None, "user_id"))

    id: Mapped[Id]
    user_id: Mapped[Ref]
    persona_name: Mapped[str] = mapped_column(String(255))
    characteristics: Mapped[JsonObjectOrEmpty]
    created_at: Mapped[Stamp]
    updated_at: Mapped[Stamp]
