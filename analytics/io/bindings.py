"""Tenancy of cost: one YAML file of tenants and ordered, dated binding rules, validated as a whole with line numbers.

::

    time_zone: Europe/Berlin
    tenants:
      acme/research/nlp: {contact: nlp@acme.example, cost_centre: "4711"}
    bindings:
      - {tenant: acme/research/nlp, account: "nlp-*", from: 2026-01-01}

Matching itself is :mod:`analytics.model.tenancy`; storing is :mod:`analytics.io.bindings_store`. A rule that can never
match, because an earlier one takes all it would, is an error: whoever wrote it believes otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl

from analytics.frames import Bindings
from analytics.io.yaml_lines import Document, Fault, Plain, read, spelled
from analytics.model import tenancy
from ingest.store.tenancy import TenantPathError, checked_path

EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""Start of a rule without ``from``: before anything was measured."""
PATTERN_KEYS: Final = {
    "cluster": "cluster",
    "account": "account",
    "partition": "partition",
    "user": "user_name",
    "namespace": "namespace",
    "label": "label",
    "key": "api_key",
    "tag": "tag",
}
"""How a pattern is called in the file, and the field it is matched with."""
MAX_RULES: Final = 5_000
MAX_PATTERN_CHARACTERS: Final = 256
_ROOT_KEYS: Final = frozenset({"time_zone", "tenants", "bindings"})
_RULE_KEYS: Final = frozenset({"tenant", "from", "to", *PATTERN_KEYS})
_TENANT_KEYS: Final = frozenset({"contact", "cost_centre"})


class BindingsError(ValueError):
    """The file cannot be used; ``faults`` says why, all of it, by line."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self.faults = faults
        super().__init__("the bindings are not valid:\n" + "\n".join(f"  {fault}" for fault in faults))


@dataclass(frozen=True, slots=True)
class Rule:
    """One binding: patterns by field (those not named match anything), during [valid_from, valid_to)."""

    line: int
    tenant: str
    patterns: Mapping[str, str]
    valid_from: datetime = EVER
    valid_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class TenantEntry:
    path: str
    contact: str | None = None
    cost_centre: str | None = None


@dataclass(frozen=True, slots=True)
class BindingFile:
    """A valid file: tenants in the order written, those only named by a rule last; rules in matching order."""

    tenants: tuple[TenantEntry, ...]
    rules: tuple[Rule, ...]

    def frame(self) -> pl.DataFrame:
        """Return the rules as :class:`analytics.frames.Bindings`; ids are positions in ``rules`` and ``tenants``."""
        tenant_ids = {tenant.path: index for index, tenant in enumerate(self.tenants)}
        rows = [
            {
                "binding_id": position,
                "position": position,
                "tenant_id": tenant_ids[rule.tenant],
                **{field: rule.patterns.get(field) for field in tenancy.FIELDS},
                "valid_from": rule.valid_from,
                "valid_to": rule.valid_to,
            }
            for position, rule in enumerate(self.rules)
        ]
        return pl.DataFrame(rows, schema=Bindings.create_empty().schema)


@dataclass(frozen=True, slots=True)
class Explained:
    """Who pays for a subject and why: the rule's line in the file, and what spoke against each rule before it."""

    tenant: str | None
    line: int | None
    steps: tuple[str, ...]


def check(text: str) -> BindingFile:
    """Return the file's content, or raise :class:`BindingsError` with every fault of it."""
    document = read(text)
    faults = list(document.faults)
    if not isinstance(document.data, dict):
        if not faults:
            faults.append(Fault(1, "", "must be a mapping with the key bindings, and maybe tenants and time_zone"))
        raise BindingsError(tuple(faults))
    root = document.data
    faults += _unknown(document, (), root, _ROOT_KEYS)
    zone = _zone(document, root, faults)
    tenants = _tenants(document, root, faults)
    rules = _rules(document, root, zone, faults)
    if not faults:
        faults += _shadowed(rules)
    if faults:
        raise BindingsError(tuple(sorted(faults)))
    named = [TenantEntry(path) for path in dict.fromkeys(rule.tenant for rule in rules) if path not in tenants]
    return BindingFile((*tenants.values(), *named), tuple(rules))


def explain(bindings: BindingFile, subject: Mapping[str, str | None], at: datetime) -> Explained:
    """Say who pays for a job or key at an instant. ``subject`` is by field (``user_name``, ``api_key``, …)."""
    found = tenancy.explain(subject, bindings.frame(), at)
    if found.binding_id is None:
        return Explained(None, None, found.steps)
    rule = bindings.rules[found.binding_id]
    return Explained(rule.tenant, rule.line, found.steps)


def _unknown(
    document: Document, path: tuple[str | int, ...], found: Mapping[str, Plain], known: frozenset[str]
) -> Iterator[Fault]:
    for key in found:
        if key not in known:
            here = (*path, key)
            yield Fault(document.line_of(here), spelled(here), f"unknown key; known are {', '.join(sorted(known))}")


def _zone(document: Document, root: Mapping[str, Plain], faults: list[Fault]) -> tzinfo:
    name = root.get("time_zone", "UTC")
    try:
        if isinstance(name, str):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass  # named below
    faults.append(Fault(document.line_of(("time_zone",)), "time_zone", f"{name!r} is not an IANA time zone"))
    return UTC


def _tenants(document: Document, root: Mapping[str, Plain], faults: list[Fault]) -> dict[str, TenantEntry]:
    given = root.get("tenants", {})
    if not isinstance(given, dict):
        faults.append(
            Fault(document.line_of(("tenants",)), "tenants", "must map tenant paths to contact and cost_centre")
        )
        return {}
    tenants = {}
    for path, details in given.items():
        here = ("tenants", path)
        line = document.line_of(here)
        fault = _path_fault(path)
        if fault:
            faults.append(Fault(line, "tenants", fault))
        elif details in ("", "null", "~"):
            tenants[path] = TenantEntry(path)
        elif not isinstance(details, dict):
            faults.append(Fault(line, spelled(here), "must be a mapping of contact and cost_centre"))
        else:
            faults += _unknown(document, here, details, _TENANT_KEYS)
            texts = {key: _text(document, (*here, key), details.get(key), faults) for key in sorted(_TENANT_KEYS)}
            tenants[path] = TenantEntry(path, texts["contact"], texts["cost_centre"])
    return tenants


def _rules(document: Document, root: Mapping[str, Plain], zone: tzinfo, faults: list[Fault]) -> list[Rule]:
    given = root.get("bindings")
    if not isinstance(given, list) or not given:
        faults.append(Fault(document.line_of(("bindings",)), "bindings", "must be a list of at least one rule"))
        return []
    if len(given) > MAX_RULES:
        faults.append(Fault(document.line_of(("bindings",)), "bindings", f"{len(given)} rules; at most {MAX_RULES}"))
        return []
    rules = []
    for position, raw in enumerate(given):
        rule = _rule(document, ("bindings", position), raw, zone, faults)
        if rule is not None:
            rules.append(rule)
    return rules


def _rule(
    document: Document, here: tuple[str | int, ...], raw: Plain, zone: tzinfo, faults: list[Fault]
) -> Rule | None:
    line = document.line_of(here)
    if not isinstance(raw, dict):
        faults.append(Fault(line, spelled(here), "must be a mapping with tenant and patterns"))
        return None
    before = len(faults)
    faults += _unknown(document, here, raw, _RULE_KEYS)
    tenant = _text(document, (*here, "tenant"), raw.get("tenant"), faults)
    fault = "names no tenant" if tenant is None else _path_fault(tenant)
    if fault:
        faults.append(Fault(document.line_of((*here, "tenant")), spelled(here), fault))
    patterns = {}
    for key, name in PATTERN_KEYS.items():
        value = _text(document, (*here, key), raw.get(key), faults)
        if value is not None:
            patterns[name] = value
    valid_from = _instant(document, (*here, "from"), raw.get("from"), zone, faults)
    valid_to = _instant(document, (*here, "to"), raw.get("to"), zone, faults)
    if valid_to is not None and valid_to <= (valid_from or EVER):
        faults.append(Fault(document.line_of((*here, "to")), spelled(here), "ends before it starts"))
    if len(faults) > before or tenant is None:
        return None
    return Rule(line, tenant, patterns, valid_from or EVER, valid_to)


def _text(document: Document, here: tuple[str | int, ...], value: Plain | None, faults: list[Fault]) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and value.strip() and len(value) <= MAX_PATTERN_CHARACTERS and value.isprintable():
        return value
    faults.append(
        Fault(document.line_of(here), spelled(here), f"must be text of 1 to {MAX_PATTERN_CHARACTERS} characters")
    )
    return None


def _path_fault(path: str) -> str | None:
    try:
        checked_path(path)
    except TenantPathError as error:
        return str(error)
    return None


def _instant(
    document: Document, here: tuple[str | int, ...], value: Plain | None, zone: tzinfo, faults: list[Fault]
) -> datetime | None:
    if value is None:
        return None
    try:
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
            return datetime.combine(date.fromisoformat(value), time(), zone).astimezone(UTC)
        if isinstance(value, str) and re.match(r"\d{4}-\d{2}-\d{2}[T ]", value):
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
    except ValueError:
        pass  # named below
    faults.append(Fault(document.line_of(here), spelled(here), f"{value!r} is not a date; write it like 2026-01-31"))
    return None


def _shadowed(rules: list[Rule]) -> Iterator[Fault]:
    for position, rule in enumerate(rules):
        for earlier in rules[:position]:
            if earlier.patterns == rule.patterns and _overlap(earlier, rule):
                yield Fault(
                    rule.line,
                    f"bindings[{position}]",
                    f"has the patterns of the rule on line {earlier.line} and overlaps it in time; make their dates meet",
                )
                break
            if _covers(earlier, rule):
                yield Fault(
                    rule.line,
                    f"bindings[{position}]",
                    f"can never match: the rule on line {earlier.line} takes all of it; move it up or remove it",
                )
                break


def _overlap(one: Rule, other: Rule) -> bool:
    return (one.valid_to is None or other.valid_from < one.valid_to) and (
        other.valid_to is None or one.valid_from < other.valid_to
    )


def _covers(earlier: Rule, rule: Rule) -> bool:
    """Say whether the earlier rule surely matches whatever this one does; False where that cannot be told from the globs."""
    if earlier.valid_from > rule.valid_from:
        return False
    if earlier.valid_to is not None and (rule.valid_to is None or rule.valid_to > earlier.valid_to):
        return False
    return all(
        field in rule.patterns and _wider(glob, rule.patterns[field]) for field, glob in earlier.patterns.items()
    )


def _wider(glob: str, other: str) -> bool:
    # A glob that matches another glob's text, its * standing for any run but only *, matches all the other matches.
    body = "".join(".*" if char == "*" else "[^*]" if char == "?" else re.escape(char) for char in glob)
    return re.fullmatch(body, other, re.DOTALL) is not None
