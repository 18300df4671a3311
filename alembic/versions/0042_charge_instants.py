"""A charge may be of an instant: exports tell fees, taxes and credits whose period ends where it begins. And feeds are named as there are."""

from alembic import op

revision = "0042_charge_instants"
down_revision = "0041_serve_rights"
branch_labels = None
depends_on = None

NAME = "imported_charges_order_ck"
FEEDS = "collector.wire.Feed: 1 native, 2 dcgm, 3 remote write, 4 import"


def upgrade() -> None:
    _order("charge_end_at >= charge_start_at")
    op.execute(f"COMMENT ON COLUMN epochs.feed IS '{FEEDS}, 5 second scraper'")


def downgrade() -> None:
    # No charge is lost by it: what is of an instant ends a microsecond later.
    op.execute(
        "UPDATE imported_charges SET charge_end_at = charge_start_at + interval '1 microsecond' WHERE charge_end_at = charge_start_at"
    )
    _order("charge_end_at > charge_start_at")
    op.execute(f"COMMENT ON COLUMN epochs.feed IS '{FEEDS}'")


def _order(of_charge: str) -> None:
    op.drop_constraint(op.f(NAME), "imported_charges", type_="check")
    op.create_check_constraint(op.f(NAME), "imported_charges", f"{of_charge} AND period_end_at > period_start_at")
