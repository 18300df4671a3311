"""Where this store may name a person: every column of text or JSON that could, and how a name stands in it.

The one list that export and erasure go by. A test fails where a column of a tenant's rows is in neither of the two halves, so
that whoever adds one has to say which. It refuses to know any person, or to change anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """How a column may hold a name."""

    NAME = "name"
    """The whole value."""
    WORDS = "words"
    """Chosen by people: the whole value, or that of a pair as in ``team=nlp,owner=ada``."""
    LIST = "list"
    """Any entry of an array, as WORDS."""
    JSON = "json"
    """Any value inside, as WORDS."""


_JOB: Final = {"user_name": Kind.NAME, "label": Kind.WORDS, "name": Kind.WORDS, "workload": Kind.WORDS}
_SHARE: Final = {"label": Kind.WORDS}

PERSONAL: Final[Mapping[str, Mapping[str, Kind]]] = {
    "jobs": _JOB,
    "queue_entries": _JOB | {"facts": Kind.JSON},
    "job_reports": {"facts": Kind.JSON},
    "kube_pods": {"facts": Kind.JSON},
    "device_shares": _SHARE,
    "late_device_shares": _SHARE,
    # Who calls is often known by user.id or enduser.id alone, which then stands for the key.
    "api_calls": {"api_key": Kind.NAME},
    "call_reports": {"api_key": Kind.NAME},
    "ledger_lines": {"api_key": Kind.NAME},
    "ledger_corrections": {"api_key": Kind.NAME},
    "line_disputes": {
        "opened_by": Kind.WORDS,
        "resolved_by": Kind.WORDS,
        "reason": Kind.WORDS,
        "resolution": Kind.WORDS,
    },
    "spans": {"attributes": Kind.JSON},
    "outcomes": {"label": Kind.WORDS, "dataset_ids": Kind.LIST},
    "lineage_runs": {"job_namespace": Kind.WORDS, "job_name": Kind.WORDS},
    "lineage_events": {"producer": Kind.WORDS, "facets": Kind.JSON},
    "lineage_datasets": {"namespace": Kind.WORDS, "name": Kind.WORDS},
    "actions": {"target": Kind.JSON, "evidence": Kind.JSON, "result": Kind.JSON, "undo": Kind.JSON},
    "decisions": {"evidence": Kind.JSON},
    "findings": {"evidence": Kind.JSON},
    "outbox": {"payload": Kind.JSON},
    "imported_charges": {
        "sub_account_name": Kind.WORDS,
        "resource_name": Kind.WORDS,
        "description": Kind.WORDS,
        "tags": Kind.JSON,
    },
    "imports": {"report": Kind.JSON},
    # Rules are renamed with what they name, so that they go on matching it.
    "bindings": {"user_name": Kind.NAME, "api_key": Kind.NAME, "label": Kind.WORDS, "tag": Kind.WORDS},
    "budgets": {"protect": Kind.JSON},
    "tenant_details": {"contact": Kind.WORDS},
    "tokens": {"name": Kind.WORDS},
}
BODIES: Final = "dead_letters"
"""Its bodies hold what agents tell of jobs; :mod:`ingest.receivers.redact` looks into them."""
OWN_ROWS: Final[Mapping[str, str]] = {
    "jobs": "user_name",
    "queue_entries": "user_name",
    "job_reports": "facts #>> '{user_name,1}'",
}
"""Tables whose rows are of one person, named by this SQL: in others' rows the same word is somebody's else, or a team's."""
UNIQUE: Final = frozenset({"api_calls", "call_reports", "ledger_lines", "lineage_datasets"})
"""Tables in which a name and its pseudonym may stand in two rows that only differ by it: they stay two."""

_ID = "an id that a machine made"
_TERM = "a word of ours, of a closed set"
_PRODUCT = "a product, model or service"
_PLACE = "a place, machine or part of the organisation"
_PROGRAM = "what a program or scheduler says of itself"
_AMOUNT = "what an amount is counted in"

NOT_PERSONAL: Final[Mapping[str, Mapping[str, str]]] = {
    "jobs": {
        "cluster": _PLACE,
        "native_id": _ID,
        "state": _TERM,
        "reason": _PROGRAM,
        "account": _PLACE,
        "partition": _PLACE,
        "qos": _PLACE,
        "namespace": _PLACE,
        "workload_kind": _TERM,
        "workload_kind_source": _TERM,
        "source": _TERM,
    },
    "queue_entries": {
        "cluster": _PLACE,
        "native_id": _ID,
        "source": _TERM,
        "outcome": _TERM,
        "account": _PLACE,
        "partition": _PLACE,
        "qos": _PLACE,
        "namespace": _PLACE,
    },
    "queue_reasons": {"reason": _PROGRAM},
    "job_reports": {"source": _TERM},
    "kube_pods": {"cluster": _PLACE, "uid": _ID, "exporter": _PROGRAM},
    "hold_events": {"pool": _PLACE, "model": _PRODUCT, "evidence": _TERM},
    "allocations": {"pool": _PLACE, "model": _PRODUCT, "evidence": _TERM},
    "allocation_events": {"evidence": _TERM},
    "api_calls": {
        "dedupe_key": _ID,
        "provider": _PRODUCT,
        "model": _PRODUCT,
        "response_id": _ID,
        "request_id": _ID,
        "trace_id": _ID,
        "span_id": _ID,
        "status": _TERM,
        "source": _TERM,
        "service_tier": _TERM,
        "tool_calls": _TERM,
        "deployment": _PLACE,
    },
    "call_reports": {
        "source": _TERM,
        "dedupe_key": _ID,
        "counted_key": _ID,
        "provider": _PRODUCT,
        "model": _PRODUCT,
        "response_id": _ID,
        "request_id": _ID,
        "trace_id": _ID,
        "span_id": _ID,
        "status": _TERM,
        "service_tier": _TERM,
        "tool_calls": _TERM,
        "deployment": _PLACE,
    },
    "spans": {
        "trace_id": _ID,
        "span_id": _ID,
        "parent_span_id": _ID,
        "name": _PROGRAM,
        "kind": _TERM,
        "model": _PRODUCT,
        "status": _TERM,
    },
    "usage_hours": {
        "holder": "a job's id here, or a word of ours",
        "state": _TERM,
        "source": _TERM,
        "method": _TERM,
        "reason": _TERM,
    },
    "ledger_lines": {
        "line_key": "made of the other columns: renamed with api_key",
        "holder_key": "a job's cluster, number and start, a model, or a word of ours",
        "method": _TERM,
        "pool": _TERM,
        "device_model": _PRODUCT,
        "charge_category": _TERM,
        "quantity_unit": _AMOUNT,
        "currency": _AMOUNT,
        "status": _TERM,
        "source": _TERM,
        "ghg_scope": _TERM,
        "basis": _TERM,
        "terms": _TERM,
        "source_currency": _AMOUNT,
    },
    "ledger_corrections": {
        "line_key": "made of the other columns: renamed with api_key",
        "holder_key": "a job's cluster, number and start, a model, or a word of ours",
        "reason": _TERM,
        "method": _TERM,
        "pool": _TERM,
        "device_model": _PRODUCT,
        "charge_category": _TERM,
        "quantity_unit": _AMOUNT,
        "currency": _AMOUNT,
        "source": _TERM,
        "ghg_scope": _TERM,
        "basis": _TERM,
        "terms": _TERM,
    },
    "bill_lines": {"pool": _TERM, "charge_category": _TERM, "currency": _AMOUNT},
    "bill_times": {"pool": _TERM},
    "bill_waste": {"kind": _TERM, "currency": _AMOUNT},
    "line_disputes": {"line": "a line's holder, model and category, without its key", "currency": _AMOUNT},
    "findings": {"dedupe_key": "a kind, ids of ours and a day", "kind": _TERM, "currency": _AMOUNT},
    "budgets": {
        "name": _PLACE,
        "period": _TERM,
        "time_zone": _PLACE,
        "measure": _TERM,
        "currency": _AMOUNT,
        "ladder": "thresholds, acts and names of webhooks",
    },
    "decisions": {"rung": _TERM, "reason": "a budget's name and its figures"},
    "actions": {"idempotency_key": _ID, "kind": _TERM, "plane": _TERM, "status": _TERM},
    "outcomes": {
        "dedupe_key": _ID,
        "response_id": _ID,
        "trace_id": _ID,
        "span_id": _ID,
        "kind": "what is judged",
        "value_unit": _AMOUNT,
        "serving_id": _ID,
        "model": _PRODUCT,
        "fine_tune_id": _ID,
        "source": _TERM,
    },
    "lineage_runs": {
        "run_id": _ID,
        "kind": _TERM,
        "state": _TERM,
        "cluster": _PLACE,
        "native_id": _ID,
        "parent_run_id": _ID,
        "model": _PRODUCT,
    },
    "lineage_events": {"event_type": _TERM, "spec": _TERM},
    "lineage_datasets": {"direction": _TERM, "version": _ID, "kind": _TERM},
    "imported_charges": {
        **dict.fromkeys(("provider", "publisher", "invoice_issuer", "service_category", "service_name"), _PRODUCT),
        **dict.fromkeys(
            (
                *("invoice_id", "billing_account_id", "sub_account_id", "sku_id", "sku_price_id", "resource_id"),
                *("region_id", "commitment_id", "call_id"),
            ),
            _ID,
        ),
        **dict.fromkeys(("category", "frequency", "pricing_category", "covers"), _TERM),
        **dict.fromkeys(("currency", "pricing_unit", "consumed_unit", "sku_meter"), _AMOUNT),
        "call_provider": _PRODUCT,
        "call_model": _PRODUCT,
    },
    "capacity_holds": {"kind": _TERM},
    "idle_policies": {"policy": _TERM, "basis": _TERM},
    "bindings": {"cluster": _PLACE, "account": _PLACE, "partition": _PLACE, "namespace": _PLACE},
    "tenant_details": {"cost_centre": _PLACE},
    "tenants": {"path": _PLACE},
    "tokens": {"scopes": _TERM, "tenant_path": _PLACE},
    "outbox": {"idempotency_key": _ID, "kind": _TERM, "url_ref": _PLACE, "last_error": _PROGRAM},
    "imports": {"kind": _TERM, "scope": _TERM, "file_name": "a file as its export calls it"},
    "device_shares": {
        "cluster": _PLACE,
        "native_job_id": _ID,
        "namespace": _PLACE,
        "evidence": _TERM,
        "method": _TERM,
    },
    "late_device_shares": {
        "cluster": _PLACE,
        "native_job_id": _ID,
        "namespace": _PLACE,
        "evidence": _TERM,
        "method": _TERM,
    },
    "dead_letters": {"reason": _TERM, "detail": _PROGRAM, "headers": "of how a body was sent, without credentials"},
    "audit": {
        "actor": "who administers: kept, as is what was done; shown by export",
        "action": _TERM,
        "subject": "what was acted on",
        "detail": "what was before and after: kept, shown by export",
    },
}
"""Why the other columns of these tables are no person's."""
