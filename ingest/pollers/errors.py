"""Why a round of a poller fails. Each is logged and the round repeated later; nothing of it counts as told.

WatchError
├── SourceError     the scheduler does not answer, or not in words this version knows
│   └── RightsError     it refuses: a token, a service account or a database user lacks rights
└── DeliveryError   ingest does not take the events now, or not from this sender
"""

from __future__ import annotations


class WatchError(Exception):
    """A message for a person: what failed, with the values, then what to do."""


class SourceError(WatchError):
    pass


class RightsError(SourceError):
    pass


class DeliveryError(WatchError):
    pass
