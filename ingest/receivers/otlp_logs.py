"""Counts the records of an OTLP log export. Logs are declined: nothing of a record is read."""

from __future__ import annotations

from typing import Any, Final

from ingest.errors import malformed
from ingest.receivers.otlp import PROTOBUF, parsed_json
from ingest.receivers.protobuf import messages

_RESOURCE_LOGS: Final = 1
_GROUPS: Final = 2


def count_records(data: bytes, media: str) -> int:
    """Return how many records an uncompressed export holds; raises BadBodyError."""
    if media == PROTOBUF:
        return sum(
            1
            for group in messages(data, 0, len(data), _RESOURCE_LOGS)
            for scope in messages(data, *group, _GROUPS)
            for _ in messages(data, *scope, _GROUPS)
        )
    groups: list[Any] = [parsed_json(data)]
    for name in ("resourceLogs", "scopeLogs", "logRecords"):
        try:
            groups = [part for group in groups for part in group.get(name) or []]
        except (AttributeError, TypeError) as error:
            raise malformed(f"not an OTLP/JSON log export: {error!r:.200}") from error
    return len(groups)
