"""What can go wrong with an embedded server, each with the next step in its message."""

from worker.errors import ConfigurationError


class EmbeddedServersMissing(ConfigurationError):
    """The embedded servers are not installed: pip install "usage-worker[embedded]"."""


class ServerDidNotStart(ConfigurationError):
    """An embedded server did not start."""


class DataFolderRefused(ConfigurationError):
    """The data folder cannot be used."""
