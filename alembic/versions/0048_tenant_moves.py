"""A reorganization is dated rows: from when on what is one tenant's is paid by another. Paths stay what they were."""

import sqlalchemy as sa
from alembic import op

revision = "0048_tenant_moves"
down_revision = "0047_minutes_apart"
branch_labels = None
depends_on = None

OWNER, WRITER, WORKER, API = "wattledger_owner", "wattledger_writer", "wattledger_worker", "wattledger_api"
BY_TENANT = "(SELECT sees_all_tenants()) OR tenant_id = ANY ((SELECT visible_tenant_ids())::integer[])"
STAMP = "transaction, of any server these rows have been in, that recorded it; 1 = before this was kept"
GONE = "transaction that replaced it; null = current, or replaced before this was kept"


def upgrade() -> None:
    op.create_table(
        "tenant_moves",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("to_tenant_id", sa.Integer(), nullable=False, comment="surrogate id"),
        _instant("valid_from", "instant, UTC: the fact holds from here"),
        _instant("valid_to", "instant, UTC: the fact holds until here; null = open", nullable=True),
        _instant("recorded_at", "instant, UTC: when we came to know this", default="now()"),
        _instant("superseded_at", "instant, UTC: no longer our knowledge from here; null = current", nullable=True),
        sa.Column("recorded_xid", _Xid8(), nullable=False, comment=STAMP),
        sa.Column("superseded_xid", _Xid8(), nullable=True, comment=GONE),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("tenant_moves_tenant_id_fk")),
        sa.ForeignKeyConstraint(["to_tenant_id"], ["tenants.id"], name=op.f("tenant_moves_to_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("tenant_moves_pk")),
        comment="A reorganization: what is a tenant's by then is paid by another. Applied after bindings and tenants named outright.",
    )
    op.execute(f"ALTER TABLE tenant_moves OWNER TO {OWNER}")
    op.execute(
        "CREATE TRIGGER stamp_dated BEFORE INSERT OR UPDATE OF superseded_at ON tenant_moves "
        "FOR EACH ROW EXECUTE FUNCTION stamp_dated()"
    )
    op.execute("ALTER TABLE tenant_moves ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE tenant_moves FORCE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY service ON tenant_moves TO {OWNER}, {WRITER}, {WORKER} USING (true) WITH CHECK (true)")
    op.execute(f"CREATE POLICY tenant_subtree ON tenant_moves FOR SELECT TO {API} USING ({BY_TENANT})")
    op.execute(f"GRANT SELECT ON tenant_moves TO {WORKER}, {API}")


def downgrade() -> None:
    op.drop_table("tenant_moves")


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
