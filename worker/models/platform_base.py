"""The declarative base of the platform database."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase  # noqa: TID251  the platform's one base

from worker.models.types import NAMING_CONVENTION


class PlatformBase(DeclarativeBase):
    """The declarative base of the platform database; it shares nothing with the user data's."""

    metadata = sa.MetaData(naming_convention=dict(NAMING_CONVENTION))
