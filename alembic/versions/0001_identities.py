"""Identities of the fleet and of tenants, and the dated facts that hang on them."""

import sqlalchemy as sa
from alembic import op

revision = "0001_identities"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sites",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("name", sa.Text(), nullable=False, comment="text"),
        sa.Column(
            "time_zone",
            sa.Text(),
            server_default="UTC",
            nullable=False,
            comment="IANA zone of tariffs and billing periods",
        ),
        sa.Column("grid_zone", sa.Text(), nullable=True, comment="zone of the carbon-intensity feed"),
        sa.Column("market_zone", sa.Text(), nullable=True, comment="zone of the electricity price feed"),
        sa.PrimaryKeyConstraint("id", name=op.f("sites_pk")),
        sa.UniqueConstraint("name", name=op.f("sites_name_uq")),
        comment="A place with one electricity supply and one clock of tariffs.",
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("site_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("name", sa.Text(), nullable=False, comment="text"),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("nodes_site_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("nodes_pk")),
        sa.UniqueConstraint("site_id", "name", name=op.f("nodes_site_id_name_uq")),
        comment="A host, by site and name.",
    )
    op.create_table(
        "topology",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("node_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("rack", sa.Text(), nullable=True, comment="text"),
        sa.Column("switch", sa.Text(), nullable=True, comment="text"),
        sa.Column("nvlink_domain", sa.Text(), nullable=True, comment="text"),
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: the fact holds from here"
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the fact holds until here; null = open",
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.Column(
            "superseded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: no longer our knowledge from here; null = current",
        ),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("topology_node_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("topology_pk")),
        comment="Where a node stands and what it hangs on.",
    )
    op.create_index(op.f("topology_node_id_ix"), "topology", ["node_id"])
    op.create_table(
        "devices",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column(
            "uuid", sa.Text(), nullable=False, comment="vendor UUID; node:<site>/<name> for a node metered as a whole"
        ),
        sa.Column("vendor", sa.Text(), nullable=False, comment="text"),
        sa.Column("model", sa.Text(), nullable=False, comment="text"),
        sa.Column("kind", sa.Text(), nullable=False, comment="gpu, mig or node"),
        sa.Column("parent_device_id", sa.Integer(), nullable=True, comment="surrogate id"),
        sa.Column("mig_profile", sa.Text(), nullable=True, comment="text"),
        sa.Column(
            "slice_ratio",
            sa.Numeric(precision=9, scale=6),
            server_default="1",
            nullable=False,
            comment="share of the parent board, 0 to 1",
        ),
        sa.Column(
            "accelerators",
            sa.Integer(),
            server_default="1",
            nullable=False,
            comment="physical accelerators this row stands for",
        ),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True, comment="bytes"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.CheckConstraint("kind IN ('gpu', 'mig', 'node')", name=op.f("devices_kind_ck")),
        sa.CheckConstraint("accelerators >= 1", name=op.f("devices_accelerators_ck")),
        sa.ForeignKeyConstraint(["parent_device_id"], ["devices.id"], name=op.f("devices_parent_device_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("devices_pk")),
        sa.UniqueConstraint("uuid", name=op.f("devices_uuid_uq")),
        comment="One accelerator, one MIG instance, or one node that only has a node meter.",
    )
    op.create_table(
        "placements",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("device_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("node_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column(
            "in_service",
            sa.Boolean(),
            server_default="true",
            nullable=False,
            comment="false: down or stranded, still on the books",
        ),
        sa.Column("asset", sa.Text(), nullable=True, comment="asset register number, kept across board swaps"),
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: the fact holds from here"
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the fact holds until here; null = open",
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.Column(
            "superseded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: no longer our knowledge from here; null = current",
        ),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("placements_device_id_fk")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("placements_node_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("placements_pk")),
        comment="Which node a device is in; a board swap is a new row.",
    )
    op.create_index(op.f("placements_device_id_ix"), "placements", ["device_id"])
    op.create_index(op.f("placements_node_id_ix"), "placements", ["node_id"])
    op.create_index(
        "placements_open_uq",
        "placements",
        ["device_id"],
        unique=True,
        postgresql_where=sa.text("valid_to IS NULL AND superseded_at IS NULL"),
    )
    op.create_table(
        "meters",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("node_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("name", sa.Text(), nullable=False, comment="as the source names it: redfish, rapl, ac, dc"),
        sa.Column(
            "bills",
            sa.Boolean(),
            server_default="true",
            nullable=False,
            comment="true: its energy is billed; false: it checks another meter",
        ),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("meters_node_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("meters_pk")),
        sa.UniqueConstraint("node_id", "name", name=op.f("meters_node_id_name_uq")),
        comment="A power meter of a node. Of several meters of one node one bills, the others check.",
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column(
            "path",
            sa.Text(),
            nullable=False,
            comment="slash path, e.g. acme/research/nlp; everything rolls up along it",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC",
        ),
        sa.CheckConstraint("path ~ '^[^/\\s][^/]*(/[^/]+)*$'", name=op.f("tenants_path_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("tenants_pk")),
        sa.UniqueConstraint("path", name=op.f("tenants_path_uq")),
        comment="Identity of a node of the paying organisation's tree.",
    )
    op.create_table(
        "tenant_details",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("tenant_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("contact", sa.Text(), nullable=True, comment="text"),
        sa.Column("cost_centre", sa.Text(), nullable=True, comment="text"),
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: the fact holds from here"
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the fact holds until here; null = open",
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.Column(
            "superseded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: no longer our knowledge from here; null = current",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("tenant_details_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("tenant_details_pk")),
        comment="Contact and cost centre of a tenant.",
    )
    op.create_index(op.f("tenant_details_tenant_id_ix"), "tenant_details", ["tenant_id"])
    op.create_table(
        "bindings",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False, comment="surrogate id"),
        sa.Column("position", sa.Integer(), nullable=False, comment="order of the rule; the first match wins"),
        sa.Column("tenant_id", sa.Integer(), nullable=False, comment="surrogate id"),
        sa.Column("cluster", sa.Text(), nullable=True, comment="glob; null = any"),
        sa.Column("account", sa.Text(), nullable=True, comment="glob; null = any"),
        sa.Column("partition", sa.Text(), nullable=True, comment="glob; null = any"),
        sa.Column("user_name", sa.Text(), nullable=True, comment="glob; null = any"),
        sa.Column("namespace", sa.Text(), nullable=True, comment="glob; null = any"),
        sa.Column("label", sa.Text(), nullable=True, comment="glob over key=value; null = any"),
        sa.Column("api_key", sa.Text(), nullable=True, comment="glob over the key's public name; null = any"),
        sa.Column("tag", sa.Text(), nullable=True, comment="glob over key=value; null = any"),
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="instant, UTC: the fact holds from here"
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: the fact holds until here; null = open",
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="instant, UTC: when we came to know this",
        ),
        sa.Column(
            "superseded_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="instant, UTC: no longer our knowledge from here; null = current",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("bindings_tenant_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("bindings_pk")),
        comment="Ordered, dated rule from what a scheduler or gateway reports to a tenant path.",
    )


def downgrade() -> None:
    op.drop_table("bindings")
    op.drop_table("tenant_details")
    op.drop_table("tenants")
    op.drop_table("meters")
    op.drop_table("placements")
    op.drop_table("devices")
    op.drop_table("topology")
    op.drop_table("nodes")
    op.drop_table("sites")
