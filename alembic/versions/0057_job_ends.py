"""When a job ended is dated as we came to know it: a bill of before that is computed again without it, as it was then.

A holding whose end nobody told ends with its job. ``jobs`` has the end that is known now; whoever writes it, a trigger keeps here what
was known before. Of ends from before this was kept it is not known when they were learnt: they always were, as until now.
"""

import sqlalchemy as sa
from alembic import op

revision = "0057_job_ends"
down_revision = "0056_whole_closes"
branch_labels = None
depends_on = None

OWNER, WORKER = "wattledger_owner", "wattledger_worker"
STAMP = "transaction, of any server these rows have been in, that recorded it; 1 = before this was kept"
GONE = "transaction that replaced it; null = current, or replaced before this was kept"
# What one transaction says twice, only its last word was ever seen of.
DATED_END = """
CREATE FUNCTION dated_end() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known_at CONSTANT timestamptz := clock_timestamp();
    writer CONSTANT xid8 := public.stamped_transaction();
BEGIN
    DELETE FROM public.job_ends WHERE job_id = NEW.id AND recorded_xid = writer;
    UPDATE public.job_ends SET superseded_at = known_at WHERE job_id = NEW.id AND superseded_at IS NULL;
    IF NEW.ended_at IS NOT NULL THEN
        INSERT INTO public.job_ends (job_id, ended_at, recorded_at, recorded_xid) VALUES (NEW.id, NEW.ended_at, known_at, writer);
    END IF;
    RETURN NULL;
END $$
"""
TRIGGERS = {
    "ends_when_made": "AFTER INSERT ON jobs FOR EACH ROW WHEN (NEW.ended_at IS NOT NULL)",
    "ends_when_told": "AFTER UPDATE ON jobs FOR EACH ROW WHEN (OLD.ended_at IS DISTINCT FROM NEW.ended_at)",
}
BEFORE = """
INSERT INTO job_ends (job_id, ended_at, recorded_at, recorded_xid) SELECT id, ended_at, recorded_at, '1' FROM jobs WHERE ended_at IS NOT NULL
"""


def upgrade() -> None:
    op.create_table(
        "job_ends",
        sa.Column("job_id", sa.BigInteger(), nullable=False, comment="surrogate id"),
        _instant("ended_at", "instant, UTC: the job's end"),
        _instant("recorded_at", "instant, UTC: when we came to know this", default="now()"),
        _instant("superseded_at", "instant, UTC: another end, or none, is known from here", nullable=True),
        sa.Column("recorded_xid", _Xid8(), nullable=False, comment=STAMP),
        sa.Column("superseded_xid", _Xid8(), nullable=True, comment=GONE),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("job_ends_job_id_fk")),
        sa.PrimaryKeyConstraint("job_id", "recorded_xid", name=op.f("job_ends_pk")),
        comment="What was known when of the ends of jobs; the rows that nothing superseded are those in jobs.",
    )
    op.execute(f"ALTER TABLE job_ends OWNER TO {OWNER}")
    op.execute(sa.text(DATED_END.replace(":", r"\:")))
    op.execute(f"ALTER FUNCTION dated_end() OWNER TO {OWNER}")
    op.execute("REVOKE EXECUTE ON FUNCTION dated_end() FROM PUBLIC")
    for name, when in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION dated_end()")
    op.execute(BEFORE)
    op.execute(
        "CREATE TRIGGER stamp_dated BEFORE INSERT OR UPDATE OF superseded_at ON job_ends "
        "FOR EACH ROW EXECUTE FUNCTION stamp_dated()"
    )
    op.execute(f"GRANT SELECT ON job_ends TO {WORKER}")


def downgrade() -> None:
    for name in TRIGGERS:
        op.execute(f"DROP TRIGGER {name} ON jobs")
    op.execute("DROP FUNCTION dated_end()")
    op.drop_table("job_ends")


def _instant(name: str, comment: str, *, nullable: bool = False, default: str | None = None) -> sa.Column[object]:
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        nullable=nullable,
        comment=comment,
        server_default=None if default is None else sa.text(default),
    )


class _Xid8(sa.types.UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "XID8"
