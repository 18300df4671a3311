"""Reads attributes and the plain members of OTLP messages, protobuf or JSON. Only wanted attributes are read.

What is not wanted may be of any length and no text at all: it costs nobody anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from ingest.receivers.protobuf import fields, messages

LONGEST_BYTES: Final = 64 * 1024
"""Of a resource that is parsed whole, and of one attribute."""
MAX_FIELDS: Final = 20_000
"""Attributes of one resource; attributes, events and links of one span."""
_RESOURCE_ATTRIBUTES: Final = 1
_SCALARS: Final = frozenset(("string_value", "int_value", "bool_value", "double_value"))

Attribute = str | int | float | bool
"""Lists, maps and bytes are left out: no attribute we use is one, and content often is."""
Names = Mapping[str, tuple[str, int]]
"""Wanted attributes: what each means, and its rank among those that mean the same, 0 = counts first."""


def resource_attributes(data: bytes, wanted: Names) -> dict[str, Attribute]:
    """Return what is wanted of a resource in protobuf; raises ValueError where that cannot be read."""
    if len(data) <= LONGEST_BYTES:
        try:
            return attributes_of(Resource.FromString(data).attributes, wanted)
        except DecodeError:
            pass  # perhaps for something that is not wanted
    pairs = []
    for count, (number, _, at, end) in enumerate(fields(data, 0, len(data))):
        if count == MAX_FIELDS:
            raise ValueError(f"a resource of more than {MAX_FIELDS} attributes")
        if number != _RESOURCE_ATTRIBUTES or key_of(data, at, end) not in wanted:
            continue
        if end - at > LONGEST_BYTES:
            raise ValueError(f"{key_of(data, at, end)} of a resource has more than {LONGEST_BYTES} bytes")
        try:
            pairs.append(KeyValue.FromString(data[at:end]))
        except DecodeError as error:
            raise ValueError(f"{key_of(data, at, end)} of a resource cannot be read: {error}") from error
    return attributes_of(pairs, wanted)


def key_of(data: bytes, start: int, end: int) -> str:
    """Return the key of the attribute between these places, '' where it has none."""
    return next((data[at:stop].decode(errors="replace") for at, stop in messages(data, start, end, 1)), "")


def attributes_of(pairs: Iterable[KeyValue], wanted: Names) -> dict[str, Attribute]:
    """Return the wanted ones of these attributes by what they mean."""
    values: dict[str, Attribute] = {}
    ranks: dict[str, int] = {}
    for pair in pairs:
        meant = wanted.get(pair.key)
        if meant is None:
            continue
        name, rank = meant
        if name in values and ranks.get(name, 0) <= rank:
            continue
        value = pair.value
        # Which of its members is set costs as much to ask as to read one that is not, and nearly all are texts and counts.
        found: Attribute = value.string_value or value.int_value
        if not found:
            kind = value.WhichOneof("value")
            if kind not in _SCALARS:
                continue
            found = getattr(value, kind)
        values[name] = found
        if rank or name in ranks:
            ranks[name] = rank
    return values


class BadIdError(ValueError):
    """An id is not as many hex digits as it must be."""


def number_of(given: Any, what: str) -> int:
    """Return a 64-bit number, which JSON has as a text or a number; 0 where there is none. Raises ValueError."""
    try:
        return int(given or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{what} must be a number, got {given!r:.60}") from error


def _float(given: Any, key: str) -> float:
    try:
        return float(given)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"doubleValue of {key} must be a number, got {given!r:.60}") from error


def list_of(given: Any, what: str) -> list[Any]:
    """Return a list, empty where there is none; raises ValueError."""
    if given is None or isinstance(given, list):
        return given or []
    raise ValueError(f"{what} must be a list, got {given!r:.60}")


def object_of(given: Any, what: str) -> Mapping[str, Any]:
    """Return an object, empty where there is none; raises ValueError."""
    if given is None or isinstance(given, dict):
        return given or {}
    raise ValueError(f"{what} must be an object, got {given!r:.60}")


def hex_of(text: Any, digits: int) -> str:
    """Return an id in lower case, '' where there is none; raises BadIdError."""
    if text in (None, ""):
        return ""
    if not isinstance(text, str) or len(text) != digits:
        raise BadIdError(f"an id must be {digits} hex digits, got {text!r:.40}")
    try:
        return bytes.fromhex(text).hex()
    except ValueError as error:
        raise BadIdError(f"an id must be {digits} hex digits, got {text!r:.40}") from error


def json_attributes(pairs: Any, wanted: Names) -> dict[str, Attribute]:
    """Return what :func:`attributes_of` does, of JSON; raises ValueError."""
    values: dict[str, Attribute] = {}
    ranks: dict[str, int] = {}
    for entry in list_of(pairs, "attributes"):
        pair = object_of(entry, "an attribute")
        key = pair.get("key") or ""
        meant = wanted.get(key) if isinstance(key, str) else None
        if meant is None or ranks.get(meant[0], meant[1] + 1) <= meant[1]:
            continue
        name, rank = meant
        given = object_of(pair.get("value"), "value of an attribute")
        if "stringValue" in given:
            values[name] = str(given["stringValue"])
        elif "intValue" in given:
            values[name] = number_of(given["intValue"], f"intValue of {key}")
        elif "doubleValue" in given:
            values[name] = _float(given["doubleValue"], key)
        elif "boolValue" in given:
            values[name] = given["boolValue"] is True
        else:
            continue
        ranks[name] = rank
    return values
