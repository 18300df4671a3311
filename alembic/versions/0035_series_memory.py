"""Remember in the store what series tell in pieces: pods of kube-state-metrics, and the spacing of each node's samples.

The spacing that nodes have is taken from their newest epochs, so that the first start of the new release learns nothing anew.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0035_series_memory"
down_revision = "0034_pseudonyms_everywhere"
branch_labels = None
depends_on = None

OWNER, WRITER = "wattledger_owner", "wattledger_writer"
NEW = ("kube_pods", "kube_exporters", "series_nodes")


def upgrade() -> None:
    _pods()
    _exporters()
    _nodes()
    for table in NEW:
        op.execute(f"ALTER TABLE {table} OWNER TO {OWNER}")
        op.execute(f"GRANT SELECT, INSERT, UPDATE ON {table} TO {WRITER}")
    op.execute(f"GRANT DELETE ON kube_pods TO {WRITER}")
    op.execute(
        "INSERT INTO series_nodes (site_id, node, origin, cadence_us, from_at) "
        "SELECT DISTINCT ON (nodes.site_id, nodes.name, epochs.origin) nodes.site_id, nodes.name, epochs.origin, "
        "epochs.cadence_us, epochs.first_seen_at FROM epochs JOIN nodes ON nodes.id = epochs.node_id "
        "WHERE epochs.feed = 3 AND epochs.boot_id = 'series' "
        "ORDER BY nodes.site_id, nodes.name, epochs.origin, epochs.first_seen_at DESC, epochs.id DESC"
    )


def downgrade() -> None:
    for table in reversed(NEW):
        op.drop_table(table)


def _text(name: str, comment: str = "text") -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False, comment=comment)


def _instant(name: str, comment: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, comment=comment)


def _site() -> sa.Column[int]:
    return sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id")


def _origin() -> sa.Column[int]:
    return sa.Column("origin", sa.SmallInteger(), nullable=False, comment="collector.wire.Origin")


def _pods() -> None:
    op.create_table(
        "kube_pods",
        _site(),
        _text("cluster"),
        _text("uid", "the pod's UID, by which agents and watchers know it too"),
        sa.Column(
            "facts",
            postgresql.JSONB(),
            nullable=False,
            comment="field -> [told at, microseconds since 1970, value]; what jobs are made from",
        ),
        _text("exporter", "the instance of kube-state-metrics that told of it last"),
        _origin(),
        sa.Column(
            "accelerators",
            sa.Integer(),
            nullable=True,
            comment="accelerators asked for; null = none were told of",
        ),
        _instant("seen_at", "instant, UTC: it was there then; up to five minutes behind"),
        _instant("gone_at", "instant, UTC: a scrape in which its series were missing", nullable=True),
        _instant("ended_at", "instant, UTC: it is over since; null = it is there, or nobody knows", nullable=True),
        sa.Column(
            "told_us",
            sa.BigInteger(),
            nullable=False,
            comment="microseconds since 1970: when the report on its job was made last",
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("kube_pods_site_id_fk")),
        sa.PrimaryKeyConstraint("site_id", "cluster", "uid", name=op.f("kube_pods_pk")),
        comment="Pods as the series of kube-state-metrics tell of them, in pieces and in any order.",
    )
    op.create_index(
        "kube_pods_open_ix",
        "kube_pods",
        ["site_id", "cluster", "seen_at"],
        postgresql_where=sa.text("ended_at IS NULL AND accelerators IS NOT NULL"),
    )
    op.create_index("kube_pods_recorded_ix", "kube_pods", ["recorded_at"])


def _exporters() -> None:
    op.create_table(
        "kube_exporters",
        _site(),
        _text("cluster"),
        _text("name", "the instance of kube-state-metrics"),
        _instant("since_at", "instant, UTC: it was heard of without a break from here on"),
        _instant("heard_at", "instant, UTC: until here; up to a minute behind"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("kube_exporters_site_id_fk")),
        sa.PrimaryKeyConstraint("site_id", "cluster", "name", name=op.f("kube_exporters_pk")),
        comment="Who tells of a cluster's pods: that a pod is missing means something only while its teller is heard of.",
    )


def _nodes() -> None:
    op.create_table(
        "series_nodes",
        _site(),
        _text("node"),
        _origin(),
        sa.Column("cadence_us", sa.BigInteger(), nullable=False, comment="microseconds"),
        _instant("from_at", "instant, UTC: of the sample that settled it"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("series_nodes_site_id_fk")),
        sa.PrimaryKeyConstraint("site_id", "node", "origin", name=op.f("series_nodes_pk")),
        comment="The spacing of the series of a node, as some replica learned it last.",
    )
