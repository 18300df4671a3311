"""What an output came from and what became of it: runs, the datasets they read and wrote, and outcomes of responses.

Runs and outcomes bear a tenant; what hangs on a run is seen by whoever sees the run.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import DOUBLE_PRECISION, JSONB

from ingest.store.tables.columns import column, instant, reference, surrogate_id
from ingest.store.tables.metadata import metadata


def _run() -> Column[int]:
    return column("lineage_run_id", BigInteger, ForeignKey("lineage_runs.id"))


lineage_runs = Table(
    "lineage_runs",
    metadata,
    surrogate_id(wide=True),
    reference("site_id", "sites"),
    reference("tenant_id", "tenants", nullable=True),
    column("run_id", Text, comment="id of the run as its sender gives it, a UUID"),
    column("job_namespace", Text),
    column("job_name", Text),
    column("kind", Text, nullable=True, comment="fine_tune, training, serving, data; null = the sender does not say"),
    column("state", Text, comment="other, start, running, complete, fail, abort"),
    instant("first_event_at", comment="instant, UTC: of its earliest event"),
    instant("ended_at", nullable=True, comment="instant, UTC: of its last end; null = runs or unknown"),
    column("cluster", Text, nullable=True, comment="of the scheduler job the run says it is; a hint, never proof"),
    column("native_id", Text, nullable=True, comment="id of that job in its cluster"),
    column("parent_run_id", Text, nullable=True, comment="id of the run this one is a part of"),
    column("model", Text, nullable=True, comment="name under which a serving run answers"),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    instant("received_at", server_default=func.now()),
    UniqueConstraint("site_id", "run_id"),
    Index("lineage_runs_model_ix", "model"),
    CheckConstraint("kind IN ('fine_tune', 'training', 'serving', 'data')", name="kind"),
    CheckConstraint("state IN ('other', 'start', 'running', 'complete', 'fail', 'abort')", name="state"),
    comment="One run as OpenLineage events tell of it, made from all of them whatever the order they came in.",
)

lineage_events = Table(
    "lineage_events",
    metadata,
    _run(),
    column("event_type", Text, comment="other, start, running, complete, fail, abort"),
    instant("event_at"),
    column("producer", Text, nullable=True),
    column("spec", Text, nullable=True, comment="version of the specification, e.g. 2-0-2"),
    column("facets", JSONB, comment="what was read of the facets we know; texts of at most 255 characters"),
    column("facets_ignored", Integer),
    instant("received_at", server_default=func.now()),
    UniqueConstraint("lineage_run_id", "event_type", "event_at"),
    comment="Each event once, however often it was sent.",
)

lineage_datasets = Table(
    "lineage_datasets",
    metadata,
    _run(),
    column("direction", Text, comment="input or output"),
    column("namespace", Text),
    column("name", Text),
    column("version", Text, server_default="", comment="text; empty = not stated"),
    column("kind", Text, nullable=True, comment="model, table, view, ... in lower case; null = not stated"),
    UniqueConstraint("lineage_run_id", "direction", "namespace", "name", "version"),
    Index("lineage_datasets_name_ix", "name", "namespace"),
    CheckConstraint("direction IN ('input', 'output')", name="direction"),
    comment="What a run read and wrote.",
)

outcomes = Table(
    "outcomes",
    metadata,
    surrogate_id(wide=True),
    reference("site_id", "sites"),
    reference("tenant_id", "tenants", nullable=True),
    column("dedupe_key", Text, comment="the sender's own id, or a hash of all the outcome says"),
    column("response_id", Text, nullable=True, comment="id of the response as its provider gave it"),
    column("trace_id", Text, nullable=True, comment="id, 32 hex digits"),
    column("span_id", Text, nullable=True, comment="id, 16 hex digits"),
    column("kind", Text, comment="what was judged: an evaluator's name, thumbs, conversion, ..."),
    column("value", Numeric, nullable=True, comment="as reported, exact; in value_unit, else a bare measure"),
    column("value_unit", Text, nullable=True),
    column("score", DOUBLE_PRECISION, nullable=True, comment="as reported: a measure of the evaluator's own scale"),
    column("label", Text, nullable=True),
    instant("judged_at"),
    column("serving_id", Text, nullable=True, comment="run id, or cluster/native id of a job"),
    column("model", Text, nullable=True),
    column("fine_tune_id", Text, nullable=True, comment="run id, or cluster/native id of a job"),
    column("dataset_ids", ARRAY(Text), nullable=True, comment="ids of datasets: namespace:name or name"),
    column("source", Text, comment="api, span or log"),
    column("origin", SmallInteger, comment="collector.wire.Origin"),
    instant("received_at", server_default=func.now()),
    UniqueConstraint("site_id", "dedupe_key"),
    Index("outcomes_response_ix", "response_id"),
    Index("outcomes_span_ix", "trace_id", "span_id"),
    CheckConstraint("num_nonnulls(response_id, trace_id) >= 1", name="subject"),
    comment="What became of a response: evaluations, ratings, business results. No text that was said.",
)
