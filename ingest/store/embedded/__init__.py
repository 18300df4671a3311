"""The default database server: PostgreSQL's own programs under our own launcher, as root or not."""

from ingest.store.embedded.errors import (
    EmbeddedError,
    FolderBusyError,
    FolderUnusableError,
    NoAccountError,
    NoBinariesError,
    ServerFailedError,
)
from ingest.store.embedded.server import EmbeddedServer, Started

__all__ = [
    "EmbeddedError",
    "EmbeddedServer",
    "FolderBusyError",
    "FolderUnusableError",
    "NoAccountError",
    "NoBinariesError",
    "ServerFailedError",
    "Started",
]
