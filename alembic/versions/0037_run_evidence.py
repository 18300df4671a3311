"""What a run of the books read can be found again: transactions of dated rows, snapshots and manifests of runs, pinned files.

``recorded_at`` is when a transaction began: a row recorded before a close and committed after it was not seen by the close, though its
instant says so. The transaction that wrote it tells, by the snapshot of the run. A replica of the version before fills none of this:
dated rows are stamped by a trigger, and its runs have no snapshot and are known by their instant, as before.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0037_run_evidence"
down_revision = "0036_call_name_window"
branch_labels = None
depends_on = None

OWNER, WORKER = "wattledger_owner", "wattledger_worker"
DATED = (
    "topology",
    "placements",
    "tenant_details",
    "bindings",
    "prices",
    "tariffs",
    "intensity",
    "facility_factors",
    "fx_rates",
    "budgets",
    "allocations",
)
RECORDED = "transaction, of any server these rows have been in, that recorded it; 1 = before this was kept"
SUPERSEDED = "transaction that replaced it; null = current, or replaced before this was kept"
# What a dump brings along stays: a restored row was written then and not now.
STAMP = """
CREATE FUNCTION stamp_dated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.recorded_xid := coalesce(NEW.recorded_xid, public.stamped_transaction());
        IF NEW.superseded_at IS NOT NULL THEN
            NEW.superseded_xid := coalesce(NEW.superseded_xid, public.stamped_transaction());
        END IF;
    ELSIF NEW.superseded_at IS DISTINCT FROM OLD.superseded_at THEN
        NEW.superseded_xid := CASE WHEN NEW.superseded_at IS NOT NULL THEN public.stamped_transaction() END;
    END IF;
    RETURN NEW;
END $$
"""
TRANSACTION = """
CREATE FUNCTION stamped_transaction() RETURNS xid8
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT (pg_current_xact_id()::text::bigint + coalesce((SELECT max(shift) FROM public.stamp_shifts), 0))::text::xid8
$$
"""
SNAPSHOT = """
CREATE FUNCTION stamped_snapshot() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT concat_ws(':', pg_snapshot_xmin(seen)::text::bigint + shift, pg_snapshot_xmax(seen)::text::bigint + shift,
                     (SELECT coalesce(string_agg((xid::text::bigint + shift)::text, ',' ORDER BY xid::text::bigint), '')
                      FROM pg_snapshot_xip(seen) AS xid))
    FROM (SELECT pg_current_snapshot(), coalesce((SELECT max(stamp_shifts.shift) FROM public.stamp_shifts), 0)) AS now (seen, shift)
$$
"""
FUNCTIONS = {"stamped_transaction()": TRANSACTION, "stamped_snapshot()": SNAPSHOT, "stamp_dated()": STAMP}


def upgrade() -> None:
    op.create_table(
        "stamp_shifts",
        sa.Column(
            "restored_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.Column(
            "shift",
            sa.BigInteger(),
            nullable=False,
            comment="added to this server's transaction ids in stamps from then on",
        ),
        sa.PrimaryKeyConstraint("restored_at", name=op.f("stamp_shifts_pk")),
        comment="A restored database counts its transactions on from those of the server before; no row: never restored.",
    )
    op.execute(f"ALTER TABLE stamp_shifts OWNER TO {OWNER}")
    for signature, body in FUNCTIONS.items():
        op.execute(sa.text(body.replace(":", r"\:")))
        op.execute(f"ALTER FUNCTION {signature} OWNER TO {OWNER}")
        op.execute(f"REVOKE EXECUTE ON FUNCTION {signature} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION stamped_snapshot() TO {WORKER}")
    for table in DATED:
        _stamp(table)
    _runs()
    op.add_column(
        "hour_segments",
        sa.Column(
            "pinned",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="true: a run of the books names it, and it stays when a later generation takes its place",
        ),
    )
    op.execute(f"GRANT UPDATE (pinned) ON hour_segments TO {WORKER}")


def downgrade() -> None:
    op.drop_column("hour_segments", "pinned")
    op.drop_constraint(op.f("ledger_runs_kind_ck"), "ledger_runs", type_="check")
    for name in ("usage_sha256", "inputs", "policy", "method_version", "snapshot", "kind"):
        op.drop_column("ledger_runs", name)
    for table in DATED:
        op.execute(f"DROP TRIGGER stamp_dated ON {table}")
        op.drop_column(table, "superseded_xid")
        op.drop_column(table, "recorded_xid")
    for signature in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION {signature}")
    op.drop_table("stamp_shifts")


def _stamp(table: str) -> None:
    # A constant default is kept beside the rows that are there: none is written again. New ones are the trigger's.
    op.execute(f"ALTER TABLE {table} ADD COLUMN recorded_xid xid8 NOT NULL DEFAULT '1', ADD COLUMN superseded_xid xid8")
    op.execute(f"ALTER TABLE {table} ALTER COLUMN recorded_xid DROP DEFAULT")
    op.execute(f"COMMENT ON COLUMN {table}.recorded_xid IS '{RECORDED}'")
    op.execute(f"COMMENT ON COLUMN {table}.superseded_xid IS '{SUPERSEDED}'")
    op.execute(
        f"CREATE TRIGGER stamp_dated BEFORE INSERT OR UPDATE OF superseded_at ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION stamp_dated()"
    )


def _runs() -> None:
    op.add_column(
        "ledger_runs",
        sa.Column(
            "kind",
            sa.Text(),
            server_default="close",
            nullable=False,
            comment="close: it wrote a revision; attest: it found what its revision says, from other inputs",
        ),
    )
    op.create_check_constraint(op.f("ledger_runs_kind_ck"), "ledger_runs", "kind IN ('close', 'attest')")
    for name, kind, comment in (
        ("snapshot", sa.Text(), "pg_snapshot in stamped transactions: what it saw; null = run before this was kept"),
        ("method_version", sa.Integer(), "of the formulas; null = run before this was kept"),
        ("policy", postgresql.JSONB(), "the choices it computed with; null = run before this was kept"),
        (
            "inputs",
            postgresql.JSONB(),
            "files by stream, hour, generation and SHA-256; rows and SHA-256 of the rest; versions; null = not kept",
        ),
        ("usage_sha256", sa.LargeBinary(), "of the usage hours of its revision; null = run before this was kept"),
    ):
        op.add_column("ledger_runs", sa.Column(name, kind, nullable=True, comment=comment))
