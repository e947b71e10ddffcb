"""What the unit tests share: generated cases are not timed, a busy machine would fail them by chance."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
