"""What is said of a node's meter is dated twice: whether it bills, what it covers, where its counter begins anew.

Until now it was written over in ``meters``, whose columns stay: they hold where nothing else is said. On the way back what holds
without an end is written there; words of other times are lost.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0060_meter_words"
down_revision = "0059_moved_told"
branch_labels = None
depends_on = None

OWNER, WORKER, API = "wattledger_owner", "wattledger_worker", "wattledger_api"
STAMP = "transaction, of any server these rows have been in, that recorded it; 1 = before this was kept"
GONE = "transaction that replaced it; null = current, or replaced before this was kept"
WORDS = ("bills", "covers", "wrap_mj")


def upgrade() -> None:
    op.create_table(
        "meter_words",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("meter_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("bills", sa.Boolean(), nullable=True, comment="as of its meter; null = the row says something else"),
        sa.Column("covers", sa.Text(), nullable=True, comment="as of its meter; null = the row says something else"),
        sa.Column(
            "wrap_mj",
            sa.BigInteger(),
            nullable=True,
            comment="millijoules, as of its meter; null = the row says something else",
        ),
        _instant("valid_from", "instant, UTC: the fact holds from here"),
        _instant("valid_to", "instant, UTC: the fact holds until here; null = open", nullable=True),
        _instant("recorded_at", "instant, UTC: when we came to know this", server_default=sa.text("now()")),
        _instant("superseded_at", "instant, UTC: no longer our knowledge from here; null = current", nullable=True),
        sa.Column("recorded_xid", _Xid8(), nullable=False, comment=STAMP),
        sa.Column("superseded_xid", _Xid8(), nullable=True, comment=GONE),
        sa.ForeignKeyConstraint(["meter_id"], ["meters.id"], name=op.f("meter_words_meter_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("meter_words_pk")),
        sa.CheckConstraint("num_nonnulls(bills, covers, wrap_mj) = 1", name=op.f("meter_words_one_ck")),
        sa.CheckConstraint("covers IN ('it', 'part', 'cooling', 'all')", name=op.f("meter_words_covers_ck")),
        sa.CheckConstraint("wrap_mj > 0", name=op.f("meter_words_amounts_ck")),
        comment="What is said of a node's meter, one word a row; where nothing is said its row in meters holds.",
    )
    op.create_index("meter_words_meter_ix", "meter_words", ["meter_id"])
    op.execute(f"ALTER TABLE meter_words OWNER TO {OWNER}")
    op.execute(
        "CREATE TRIGGER stamp_dated BEFORE INSERT OR UPDATE OF superseded_at ON meter_words "
        "FOR EACH ROW EXECUTE FUNCTION stamp_dated()"
    )
    op.execute(f"GRANT SELECT ON meter_words TO {WORKER}, {API}")


def downgrade() -> None:
    for word in WORDS:
        op.execute(
            f"UPDATE meters SET {word} = said.{word} FROM meter_words AS said WHERE said.meter_id = meters.id "  # noqa: S608 (constants)
            f"AND said.superseded_at IS NULL AND said.valid_to IS NULL AND said.{word} IS NOT NULL"
        )
    op.drop_table("meter_words")


def _instant(name: str, comment: str, *, nullable: bool = False, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, comment=comment, **options)


class _Xid8(sa.types.UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "XID8"
